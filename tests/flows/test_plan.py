"""The plan of the whole run: every stage of every params file, the sums, and what would be refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dinov2.curation.costs.sizes import Assumed
from dinov2.train.plan import Assumptions
from flows.full_pipeline import STAGES
from flows.plan import print_plan
from tasks.needs import Need, needs

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def rows(printed: str) -> dict[str, list[str]]:
    """Cells of each stage's row, by its name."""
    lines = [line.split() for line in printed.splitlines()]
    return {cells[0]: cells for cells in lines if cells and cells[0] in (*STAGES, "in")}


def test_plan_of_params_yaml_has_every_stage_and_says_what_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_plan(STAGES, ["--plan", "--params", str(ROOT / "params.yaml"), "--images", "1000"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in rows(printed) if name != "in"] == list(STAGES)
    assert "1,000 images of an assumed 110 kB" in printed
    assert "without the time of bootstrap, pretrain, highres, distill, evaluate, report" in printed
    assert rows(printed)["download"][-4:] == ["220", "MB", "87.4", "MB"]  # 2 x 1,000 x 110 kB


def test_hours_of_a_training_are_those_of_its_own_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert print_plan(STAGES, ["--plan", "--params", str(ROOT / "presets/paper-vitl.yaml"), "--gpu", "H100"]) == 0
    row = rows(capsys.readouterr().out)["pretrain"]
    command = [sys.executable, "-m", "tasks.pretrain", "--plan", "--params", str(ROOT / "presets/paper-vitl.yaml")]
    own = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout
    (line,) = [line.split() for line in own.splitlines() if line.strip().startswith("H100")]
    assert line[line.index("TF/s") + 5] in row  # its GPU-hours
    assert "12 nodes, each 96 cores, 8 GPUs" in " ".join(row)


@pytest.mark.slow
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_has_a_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_plan(STAGES, ["--plan", "--params", str(path)]) == 0
    assert set(rows(capsys.readouterr().out)) == {*STAGES, "in"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("num_steps: 135", "num_steps: none", "params.yaml: pretrain.num_steps"),
        ("  batch_size: 64\n  group_size: 64\n  num_steps: 135", "  batch_size: 96\n  group_size: 48\n  num_steps: 135",
         "pretrain: batch_size 96 does not divide into 4 processes"),
    ],
)  # fmt: skip
def test_what_training_would_refuse_is_one_sentence(
    old: str, new: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    text = text.replace(old, new).replace("stages: {} ", "stages: {pretrain: {gpus_per_node: 4}} ")
    (tmp_path / "params.yaml").write_text(text)
    assert print_plan(STAGES, ["--plan", "--params", str(tmp_path / "params.yaml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"full-pipeline: {told}")
    assert len(captured.err.splitlines()) == 1


def test_an_array_of_which_some_elements_run_later_holds_no_more_and_each_is_shorter(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("cluster: local ", "cluster: slurm ")
    found: dict[int, Need] = {}
    for workers in (8, 64):
        launch = f"stages: {{embed: {{workers: {workers}, max_running: 8, timeout_min: 1200}}}} "
        (tmp_path / "params.yaml").write_text(text.replace("stages: {} ", launch))
        (found[workers],) = needs(["embed"], tmp_path / "params.yaml", Assumed(images=3e8), Assumptions())
    few, many = found[8], found[64]
    assert (few.hours, few.held_jobs_hours) == (many.hours, many.held_jobs_hours)
    assert many.jobs is not None and few.jobs is not None and many.jobs == 8 * few.jobs
    (over,) = [note for note in few.notes if "its limit is 20 h" in note]
    assert few.hours is not None and 20 < few.hours < 8 * 20, over
    assert not many.notes


@pytest.mark.parametrize(("option", "told"), [("--gpu=B7", "--gpu is 'B7'"), ("--mfu=2", "--mfu is 2.0")])
def test_options_out_of_range_are_told(option: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_plan(STAGES, ["--plan", "--params", str(ROOT / "params.yaml"), option]) == 2
    assert capsys.readouterr().err.startswith(f"full-pipeline: {told}")


def test_flow_s_command_line_prints_it_without_a_server(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = f"'{sys.executable}' -m flows.full_pipeline --plan | head -1"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # whoever reads one line has read enough
    assert done.stdout == "the whole run on local, by section launch; every stage of the curation sees all images\n"
