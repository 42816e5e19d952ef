"""`dvc exp run -S`: in the repository and in a copy of it, with one store and one MLflow."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import TINY, draw_inputs
from dvc_project import make_project, shipped_stages, succeed

from dinov2.store import Store, StoreParams
from dinov2.workspace import is_copy, workspace

RUNS = """
select runs.status, params.value, experiment.value from runs
join tags kind on kind.run_uuid = runs.run_uuid and kind.key = 'kind' and kind.value = 'stage'
join params on params.run_uuid = runs.run_uuid and params.key = 'seed'
left join tags experiment on experiment.run_uuid = runs.run_uuid and experiment.key = 'dvc_experiment'
"""


def finished_runs(database: Path, num: int) -> list[tuple[str, str]]:
    """(seed, experiment) of each run; waits until that many are shipped to their end."""
    deadline = time.monotonic() + 60
    while True:
        with closing(sqlite3.connect(database)) as connection:
            runs = connection.execute(RUNS).fetchall()
        if len(runs) >= num and all(status == "FINISHED" for status, _, _ in runs):
            return sorted((seed, experiment or "") for _, seed, experiment in runs)
        assert time.monotonic() < deadline, runs
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_experiments_are_runs_of_one_mlflow_that_differ_in_their_params(tmp_path: Path) -> None:
    draw_inputs(tmp_path / "inputs")
    inputs = {name: f"inputs/{name}" for name in ("crawl", "seeds", "evaluation")}
    params = {"inputs": inputs, "bootstrap": TINY["bootstrap"]}
    make_project(tmp_path, shipped_stages("bootstrap"), tracking="sqlite:///mlflow.db", **params)
    succeed(tmp_path, "dvc", "repro")
    assert finished_runs(tmp_path / "mlflow.db", 1) == [("0", "")]
    succeed(tmp_path, "git", "add", ".")
    succeed(tmp_path, "git", "commit", "--quiet", "--message", "results")
    succeed(tmp_path, "dvc", "exp", "run", "--name", "here", "--set-param", "bootstrap.seed=2")
    assert finished_runs(tmp_path / "mlflow.db", 2) == [("0", ""), ("2", "here")]

    weights = (tmp_path / "data/bootstrap/backbone.safetensors").read_bytes()
    in_a_copy = ("--temp", "--copy-paths", "inputs", "--set-param", "bootstrap.seed=3")
    succeed(tmp_path, "dvc", "exp", "run", "--name", "apart", *in_a_copy)
    assert finished_runs(tmp_path / "mlflow.db", 3) == [("0", ""), ("2", "here"), ("3", "apart")]
    assert (tmp_path / "data/bootstrap/backbone.safetensors").read_bytes() == weights
    succeed(tmp_path, "dvc", "exp", "apply", "apart")
    assert (tmp_path / "data/bootstrap/backbone.safetensors").read_bytes() != weights


@pytest.mark.parametrize("below", [".dvc/tmp/exps/tmpab", ".dvc/tmp/exps/standalone/tmpab", "", "x/.dvc/tmp"])
def test_store_and_cache_of_a_copy_are_the_repository_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    here = tmp_path / below
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    root = tmp_path if "exps" in below else here
    assert workspace() == root
    assert is_copy() == (root != here)
    store = Store(StoreParams(url="store", cache="cache", remote=None))
    assert (store.root, store.cache) == (str(root / "store"), root / "cache")
    assert Store(StoreParams(url=str(tmp_path / "far"), cache="", remote=None)).root == str(tmp_path / "far")
