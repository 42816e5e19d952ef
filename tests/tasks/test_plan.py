"""`--plan` on the command line: no inputs, no job, nothing left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def plan(folder: Path, stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tasks.{stage}", "--plan", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_plan_takes_another_params_file_and_leaves_nothing(tmp_path: Path) -> None:
    preset = ROOT / "presets/paper-vitl.yaml"
    done = plan(tmp_path, "highres", "--params", str(preset))
    assert done.returncode == 0, done.stderr
    assert "402,845,568 parameters" in done.stdout  # pretrain's networks with positions for 518 px
    assert "96 (12 nodes of 8 GPUs)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_by_default_is_that_of_params_yaml(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = plan(tmp_path, "pretrain")
    assert done.returncode == 0, done.stderr
    assert "launch gives pretrain no GPU" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_plan_that_training_would_refuse_is_told_after_what_can_be_said(tmp_path: Path) -> None:
    preset = str(ROOT / "presets/paper-vitl.yaml")
    done = plan(tmp_path, "pretrain", "--params", preset, "--processes", "40")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("shards      8, built on the meta device")
    assert done.stderr.startswith("pretrain: batch_size 3072 does not divide into 40 processes of whole groups of 32")


@pytest.mark.parametrize(
    ("stage", "options", "told"),
    [
        ("report", [], "report: this stage has no plan; run it without --plan"),
        ("pretrain", ["--params", "none.yaml"], "pretrain: none.yaml can't be read"),
    ],
)
def test_plan_that_cannot_be_made_is_one_sentence_and_exit_code_2(
    tmp_path: Path, stage: str, options: list[str], told: str
) -> None:
    done = plan(tmp_path, stage, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1


def test_plan_of_the_curation_takes_machines_from_launch_and_numbers_from_options(tmp_path: Path) -> None:
    preset = str(ROOT / "presets/paper-vitg.yaml")
    done = plan(tmp_path, "dedup", "--params", preset, "--images", "2e6", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "2,000,000, of an assumed 110 kB" in done.stdout
    assert "64 nodes of 12 cores and 1 A100 80 GB; 64 processes" in done.stdout
    assert "2e+15 FLOP" in done.stdout  # of the join
    assert plan(tmp_path, "embed", "--params", preset, "--gpus", "-1").returncode == 2
