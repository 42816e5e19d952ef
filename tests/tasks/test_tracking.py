"""Shipping runs to MLflow: a real SQLite store, a server that is not there, and what is shipped later."""

import fcntl
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from dinov2.params import InputError
from dinov2.records import write_json
from tasks.tracked import MARK, TROUBLE
from tasks.tracking import TrackingParams, connect, end_parent, flatten, follow, ship_all, start_parent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")


def params(uri: str) -> TrackingParams:
    return TrackingParams(uri=uri, experiment="tests", ship_every_s=0.05, idle_s=1.0)


def mark(work: Path, attempt: int, status: str, process: list[float], tags: dict[str, str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    values = {"model": {"dim": 8}, "seed": 1}
    about = {"attempt": attempt, "name": "pretrain", "values": values, "tags": {"stage": "pretrain", **tags}}
    write_json(work / MARK, {**about, "process": process, "status": status, "metrics": {"final": 0.5}, "files": []})


def add_rows(work: Path, steps: range) -> None:
    with (work / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"step": n, "time": 1000.0 + n, "total": 10.0 - n}) + "\n" for n in steps)


def test_a_stage_is_a_child_run_that_is_taken_up_again_without_a_point_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = params(f"sqlite:///{tmp_path}/mlflow.db")
    parent = start_parent(given, "pipeline", {})
    work, me, gone = tmp_path / "work/pretrain/0123", psutil.Process(), [1, 0.0]
    mark(work, 1, "RUNNING", [me.pid, me.create_time()], {"mlflow.parentRunId": parent})
    add_rows(work, range(2))
    assert ship_all(given, tmp_path / "work") == (0, 1)
    assert ship_all(given, tmp_path / "work") == (0, 1)
    mark(work, 1, "RUNNING", gone, {})  # killed: nobody wrote an end
    assert ship_all(given, tmp_path / "work") == (1, 0)
    client, experiment = connect(given)
    assert child_of(client, experiment).info.status == "KILLED"

    mark(work, 2, "FINISHED", gone, {"host": "b"})
    add_rows(work, range(2, 3))
    assert ship_all(given, tmp_path / "work") == (1, 0)
    end_parent(given, parent, "FINISHED", {"knn": 0.7}, [])
    child = child_of(client, experiment)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.params == {"model.dim": "8", "seed": "1"}
    assert child.data.metrics["final"] == 0.5
    history = client.get_metric_history(child.info.run_id, "total")
    assert [(point.step, point.value) for point in history] == [(0, 10.0), (1, 9.0), (2, 8.0)]


def child_of(client: Any, experiment: str) -> Any:
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"pipeline", "pretrain"}
    return runs["pretrain"]


def test_a_server_that_is_down_is_told_and_the_mark_stays_to_be_shipped(tmp_path: Path) -> None:
    work = tmp_path / "pretrain/0123"
    mark(work, 1, "FINISHED", [1, 0.0], {})
    follow(params("http://127.0.0.1:9"), tmp_path)
    assert "tracking server http://127.0.0.1:9 can't be reached" in (tmp_path / TROUBLE).read_text()
    assert (work / MARK).exists()
    assert not (work / "mlflow.json").exists()


def test_a_second_background_process_ends_at_once(tmp_path: Path) -> None:
    with (tmp_path / "tracking.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        follow(params("http://127.0.0.1:9"), tmp_path)
    assert not (tmp_path / TROUBLE).exists()


@pytest.mark.parametrize("uri", ["mlflow.db", "sqlight:///x.db", "ftp://host/x"])
def test_an_address_of_no_known_kind_is_a_mistake(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is"):
        params(uri).absolute_uri()


def test_a_relative_sqlite_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert params("sqlite:///mlflow.db").absolute_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert params("sqlite:////x/y.db").absolute_uri() == "sqlite:////x/y.db"


def test_nested_params_are_flat_with_dots() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}}, "d": [2]})) == {"a.b.c": 1, "d": [2]}
