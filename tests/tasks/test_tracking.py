"""Shipping runs to MLflow: a real SQLite store, a server that is not there, and what is shipped later."""

import json
import time
from pathlib import Path

import pytest

from dinov2.params import InputError
from tasks.tracking import PARENT_RUN, Shipper, TrackingParams, connect, end_parent, flatten, replay, start_parent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")


def params(uri: str) -> TrackingParams:
    return TrackingParams(uri=uri, experiment="tests", ship_every_s=0.05, patience_s=60.0)


def ship(given: TrackingParams, work: Path, warnings: list[str]) -> None:
    (work / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    values = {"model": {"dim": 8}, "seed": 1}
    tags = {"stage": "pretrain"}
    with Shipper(given, work, name="pretrain", values=values, tags=tags, warn=warnings.append) as shipper:
        shipper.finish("FINISHED", {"final": 0.5}, [])


def rows(number: int) -> list[dict[str, float]]:
    return [{"step": step, "time": 1000.0 + step, "total": 10.0 - step} for step in range(number)]


def test_a_stage_is_a_child_run_that_is_taken_up_again_and_what_was_down_is_shipped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = params(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    parent = start_parent(given, "pipeline", {})
    monkeypatch.setenv(PARENT_RUN, parent)
    warnings: list[str] = []
    work = tmp_path / "work/pretrain/0123"
    work.mkdir(parents=True)

    ship(params("http://127.0.0.1:9"), work, warnings)
    assert len(warnings) == 1
    assert "can't be reached" in warnings[0]
    assert replay(given, tmp_path / "work") == 1
    client, experiment = connect(given)
    ship(given, work, warnings)  # a second start of the same work: the same run, and no point twice
    end_parent(given, parent, "FINISHED", {"knn": 0.7}, [])

    assert len(warnings) == 1
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"pipeline", "pretrain"}
    child = runs["pretrain"]
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.params == {"model.dim": "8", "seed": "1"}
    assert child.info.status == "FINISHED"
    history = client.get_metric_history(child.info.run_id, "total")
    assert [(point.step, point.value) for point in history] == [(0, 10.0), (1, 9.0), (2, 8.0)]


def test_a_server_that_hangs_does_not_hold_the_stage_longer_than_its_patience(tmp_path: Path) -> None:
    slow = params("http://127.0.0.1:9").model_copy(update={"patience_s": 0.0})
    warnings: list[str] = []
    started = time.monotonic()
    ship(slow, tmp_path, warnings)
    assert time.monotonic() - started < 2
    assert any("is slow" in line or "can't be reached" in line for line in warnings)


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
