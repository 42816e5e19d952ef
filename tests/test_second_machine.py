"""What one machine made, another fetches instead of making it again: manifests by DVC, blobs by `dinov2.store`.

Three stages run by their commands in repository A; B is a clone of it with nothing else. And stages side by side.
"""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, draw_inputs
from dvc_project import command, environment, make_project, shipped_stages, succeed

STAGES = ("crawl", "download", "filter")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository A, whose stages were run, committed and pushed to remotes beside it."""
    home = tmp_path_factory.mktemp("machines")
    folder = home / "a"
    draw_inputs(home / "inputs")
    shipped_store = {"url": "store", "cache": "work/store-cache", "remote": str(home / "blobs")}
    make_project(
        folder, shipped_stages(*STAGES),
        inputs={name: str(home / "inputs" / name) for name in ("crawl", "seeds", "evaluation")},
        store=shipped_store, **{stage: TINY[stage] for stage in STAGES},
    )  # fmt: skip
    succeed(folder, "dvc", "remote", "add", "--default", "machines", str(home / "manifests"))
    succeed(folder, "dvc", "repro")
    succeed(folder, "git", "add", ".")
    succeed(folder, "git", "commit", "--quiet", "--message", "results")
    succeed(folder, "dvc", "push", "--run-cache")
    succeed(folder, "dinov2.store", "push")
    return folder


def clone(first: Path, folder: Path) -> Path:
    succeed(first.parent, "git", "clone", "--quiet", str(first), str(folder))
    assert not (folder / "data").exists()
    return folder


def has_run(folder: Path) -> list[str]:
    """Stages whose command has run in a repository."""
    return sorted(path.parent.name for path in (folder / "work").glob("*/lock"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_clone_that_pulls_runs_nothing_and_has_the_same(first: Path, tmp_path: Path) -> None:
    second = clone(first, tmp_path / "b")
    succeed(second, "dvc", "pull")
    succeed(second, "dinov2.store", "pull")
    said = succeed(second, "dvc", "repro")
    assert "Running stage" not in said
    assert has_run(second) == []
    assert contents(second / "data") == contents(first / "data")
    assert contents(second / "store") == contents(first / "store") != {}
    assert succeed(second, "dinov2.store", "verify").splitlines()[-1] == "verify: 1 of 1 blobs are whole"
    assert command(second, "git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_clone_without_dvc_lock_takes_what_the_run_cache_has(first: Path, tmp_path: Path) -> None:
    """As for params that A has tried and not committed."""
    second = clone(first, tmp_path / "b")
    (second / "dvc.lock").unlink()
    succeed(second, "dvc", "fetch", "--run-cache")
    said = succeed(second, "dvc", "repro", "--pull")
    assert said.count("is cached - skipping run, checking out outputs") == len(STAGES)
    assert has_run(second) == []
    assert contents(second / "data") == contents(first / "data")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stage_without_its_blobs_says_which_and_how_to_get_them(first: Path, tmp_path: Path) -> None:
    second = clone(first, tmp_path / "b")
    succeed(second, "dvc", "pull")
    text = (second / "params.yaml").read_text()
    (second / "params.yaml").write_text(text.replace("min_side_px: 32", "min_side_px: 33"))
    done = command(second, "dvc", "repro")
    assert done.returncode != 0
    (shard,) = json.loads((second / "data/download/blobs.json").read_text())
    told = [line for line in done.stderr.splitlines() if line.startswith("filter: ")]
    assert told == [
        f"filter: data/download/manifest.parquet needs 1 blobs that are absent; the first: blob {shard} is not in the "
        "store store; get it by `python -m dinov2.store pull`, or make it again by `dvc repro -f` of its stage"
    ]
    succeed(second, "dinov2.store", "pull")
    succeed(second, "dvc", "repro")
    assert has_run(second) == ["filter"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gc_keeps_what_a_checkout_can_bring_back(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "b"
    shutil.copytree(first, second, symlinks=True)
    kept = contents(second / "store")
    images = sorted(path.stat().st_size for path in first.parent.glob("inputs/crawl/*.png"))
    text = (second / "params.yaml").read_text()
    fewer = text.replace("max_bytes: 20000000", f"max_bytes: {images[-3]}")
    (second / "params.yaml").write_text(fewer)
    succeed(second, "dvc", "repro")
    both = contents(second / "store")
    assert kept.keys() < both.keys()
    succeed(second, "dinov2.store", "gc")
    assert contents(second / "store") == both  # DVC's cache has the manifests of the first params
    succeed(second, "git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    succeed(second, "dvc", "checkout")
    succeed(second, "dvc", "gc", "--workspace", "--force")  # now it has not those of the second any more
    succeed(second, "dinov2.store", "gc")
    assert contents(second / "store") == kept
    (second / "params.yaml").write_text(fewer)
    succeed(second, "dvc", "repro")
    assert contents(second / "store") == both  # what was removed is made again


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_side_by_side_wait_for_each_other_s_locks(tmp_path: Path) -> None:
    """Two whose commands overlap, while a third DVC holds the repository's lock, as it does to commit a big output."""
    make_project(tmp_path, {})
    meet = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch()\nwhile not all(map(pathlib.Path.exists, map("
    (tmp_path / "meet.py").write_text(meet + "pathlib.Path, 'ab'))): time.sleep(0.1)\n")
    stages = {name: {"cmd": f"python meet.py {name}", "deps": ["meet.py"], "outs": [name]} for name in "ab"}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    with (tmp_path / ".dvc/tmp/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name],
                cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for name in stages
        ]  # fmt: skip
        time.sleep(7)  # DVC by itself waits for 3
        assert not (tmp_path / "a").exists()
    for process in started:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert json.loads(succeed(tmp_path, "dvc", "status", "--json")) == {}
