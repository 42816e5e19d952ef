"""Real server, real deployments, real DVC, stages that take no time: what a person does to flow runs, and accidents."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flow_workspace import Prefect, behave, events, make_workspace, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
CRON = "0 3 * * *"
STUDENTS = {"distill": ["demo-s"]}


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A workspace that is served, with three places for stages."""
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder, stages_at_once=3, schedules={"curation": CRON}, timezone="Europe/Berlin")
    with Prefect(folder) as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_done_yet(prefect: Prefect) -> None:
    """No stage was run; what training needs is there."""
    for name in ("data", "dvc.lock", "events.jsonl", ".dvc/cache/runs"):
        path = prefect.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (prefect.folder / "data/retrieve").mkdir(parents=True)


def wait_for(prefect: Prefect, stage: str, event: str = "begin", count: int = 1) -> None:
    """Until the stage has noted that, so often."""

    def noted() -> bool:
        return happened(prefect).count((stage, event)) >= count

    until(noted, 90, f"{stage}: {event}")


def happened(prefect: Prefect) -> list[tuple[str, str]]:
    """What the stages noted, in order."""
    return [(one["stage"], one["event"]) for one in events(prefect.folder)]


def following(prefect: Prefect, run: str) -> dict[str, Any]:
    """The run that was started for one whose process died."""

    def found() -> dict[str, Any] | None:
        try:
            name = prefect.get(f"/flow_runs/{run}")["name"]
            query = {"flow_runs": {"name": {"any_": [f"{name.removesuffix('-1')}-{1 + name.endswith('-1')}"]}}}
            return next(iter(prefect.get("/flow_runs/filter", query)), None)
        except OSError:
            return None

    return until(found, 60, f"what follows {run}")


@pytest.mark.parametrize(
    ("deployment", "option", "sentence"),
    [
        ("full-pipeline", "start_at=embedd", "'embedd' is not one of ['crawl', 'download'"),
        ("curation", "stop_at=pretrain", "'pretrain' is not one of ['crawl', 'download'"),
        ("training", 'force=["crawl"]', "'crawl' is not one of ['pretrain', 'highres', 'distill']"),
    ],
)
def test_wrong_names_are_refused_before_there_is_a_run(
    prefect: Prefect, deployment: str, option: str, sentence: str
) -> None:
    code, text = prefect.command("deployment", "run", deployment, "-p", option)
    assert code == 1
    assert sentence in text
    assert "UUID" not in text


def test_a_wrong_order_is_refused_before_there_is_a_run(prefect: Prefect) -> None:
    code, text = prefect.command("deployment", "run", "training", "-p", "start_at=distill", "-p", "stop_at=pretrain")
    assert code == 1
    assert "'pretrain' is not one of ['distill']" in text
    assert "UUID" not in text


def test_the_schedule_of_params_is_kept_and_the_cluster_has_its_places(prefect: Prefect) -> None:
    [schedule] = prefect.get("/deployments/name/curation/curation")["schedules"]
    assert schedule["schedule"]["cron"] == CRON
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = until(lambda: prefect.get("/flow_runs/filter", scheduled), 90, "runs that are scheduled")
    assert {run["auto_scheduled"] for run in runs} == {True}
    assert prefect.get("/deployments/name/training/training")["schedules"] == []
    assert prefect.get("/v2/concurrency_limits/cluster-local")["limit"] == 3


def test_what_does_not_need_each_other_runs_side_by_side_and_only_a_crash_is_tried_again(prefect: Prefect) -> None:
    fails = {"filter": ["crash"], "report": ["gate"]}
    seconds = {"bootstrap": 8.0, "crawl": 8.0, "evaluate": 8.0}
    behave(prefect.folder, seconds=seconds, fails=fails, folders=STUDENTS)
    run = prefect.start("full-pipeline")
    state = prefect.ended(run, 300)
    assert state["type"] == "FAILED"
    assert state["message"].endswith("report: a gate on purpose")
    seen = happened(prefect)
    assert [event for stage, event in seen if stage == "filter"] == ["begin", "crash", "begin", "end"]
    assert [event for stage, event in seen if stage == "report"] == ["begin", "gate"]
    for one, other in (("bootstrap", "crawl"), ("evaluate@random", "evaluate@pretrain")):
        assert max(seen.index((one, "begin")), seen.index((other, "begin"))) < min(
            seen.index((one, "end")), seen.index((other, "end"))
        )
    query = {"flow_runs": {"id": {"any_": [run]}}}
    shown = {artifact["key"]: artifact for artifact in prefect.get("/artifacts/latest/filter", query)}
    assert {"progress", "curation-funnel", "metrics-evaluate", "metrics-crawl"} <= set(shown)
    assert shown["progress"]["data"] == pytest.approx(100 * 13 / 14)
    funnel = json.loads(shown["curation-funnel"]["data"])
    assert funnel[0] == {"stage": "crawl", "in": 4, "kept": 2, "dropped": "tiny 2"}
    again = prefect.start("evaluation", "-p", "start_at=report")
    assert prefect.ended(again)["type"] == "COMPLETED"
    assert prefect.tasks(again) == {"report": "Completed"}
    until(lambda: "the summary" in prefect.log(again), 30, "the summary in the log")


def test_a_second_run_is_refused_and_cancelling_the_first_cancels_all_its_stages(prefect: Prefect) -> None:
    behave(prefect.folder, seconds={"crawl": 120.0, "bootstrap": 120.0})
    run = prefect.start("curation")
    wait_for(prefect, "crawl")
    wait_for(prefect, "bootstrap")
    state = prefect.ended(prefect.start("dedup"))
    name = prefect.get(f"/flow_runs/{run}")["name"]
    assert state["type"] == "FAILED"
    assert f"curation run '{name}' (process" in state["message"]
    code, text = prefect.command("flow-run", "cancel", run)
    assert code == 0, text
    assert prefect.ended(run)["type"] == "CANCELLED"
    wait_for(prefect, "crawl", "cancelled its job")
    wait_for(prefect, "bootstrap", "cancelled its job")
    time.sleep(12)  # two looks and more
    assert prefect.state(run)["type"] == "CANCELLED"
    assert happened(prefect).count(("crawl", "begin")) == 1


def test_a_flow_whose_process_was_killed_is_taken_up_once_where_it_was(prefect: Prefect) -> None:
    behave(prefect.folder, seconds={"highres": 20.0}, folders=STUDENTS)
    run = prefect.start("training", "-p", 'force=["pretrain"]')
    wait_for(prefect, "highres")
    prefect.process(run).kill()
    second = following(prefect, run)
    assert prefect.state(run)["type"] == "CRASHED"
    assert second["tags"] == ["taken-up-1"]
    assert second["parameters"] == {"force": []}
    wait_for(prefect, "highres", count=2)
    assert happened(prefect).count(("pretrain", "begin")) == 1
    prefect.process(second["id"]).kill()
    until(lambda: "start it again" in (prefect.state(second["id"])["message"] or ""), 60, "no third")
    assert prefect.state(second["id"])["type"] == "CRASHED"
    third = prefect.start("training")
    assert prefect.ended(third)["type"] == "COMPLETED"
    assert prefect.tasks(third) == {"pretrain": "UpToDate", "highres": "Completed", "distill": "Completed"}


def test_a_flow_goes_on_when_what_serves_it_is_killed_and_then_the_server(prefect: Prefect) -> None:
    behave(prefect.folder, seconds={"pretrain": 45.0}, folders=STUDENTS)
    run = prefect.start("training")
    wait_for(prefect, "pretrain")
    prefect.kill("deployments")
    code, text = prefect.serve("up")
    assert code == 0, text
    prefect.kill("server")
    assert prefect.ended(run, 200)["type"] == "COMPLETED"
    assert [event for stage, event in happened(prefect) if stage == "pretrain"] == ["begin", "end"]
    assert until(lambda: prefect.get("/v2/concurrency_limits/cluster-local")["active_slots"] == 0, 120, "free places")


def test_a_machine_that_went_down_is_no_loss(prefect: Prefect) -> None:
    behave(prefect.folder, seconds={"highres": 10.0}, folders=STUDENTS)
    run = prefect.start("training")
    wait_for(prefect, "highres")
    prefect.kill("deployments")
    prefect.process(run).kill()
    prefect.kill("server")
    code, text = prefect.serve("up")
    assert code == 0, text
    second = following(prefect, run)
    assert prefect.ended(second["id"])["type"] == "COMPLETED"
    assert happened(prefect).count(("pretrain", "begin")) == 1


def test_what_was_stopped_by_down_is_not_taken_up(prefect: Prefect) -> None:
    behave(prefect.folder, seconds={"pretrain": 120.0})
    run = prefect.start("training")
    wait_for(prefect, "pretrain")
    assert prefect.serve("down")[0] == 0
    assert happened(prefect) == [("pretrain", "begin"), ("pretrain", "cancelled its job")]
    assert prefect.serve("up")[0] == 0
    time.sleep(12)
    state = prefect.state(run)
    assert (state["type"], state["message"][:28]) == ("CANCELLED", "stopped by `flows.serve down")
    assert happened(prefect).count(("pretrain", "begin")) == 1


def test_a_schedule_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    make_workspace(tmp_path, schedules={"full-pipelin": CRON})
    code, text = Prefect(tmp_path).serve("up")
    assert code == 2
    assert "flows.schedules names 'full-pipelin', which is no deployment; there are full-pipeline, curation" in text
