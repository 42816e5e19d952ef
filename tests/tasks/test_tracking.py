"""Shipping runs to MLflow: a real SQLite store; what is shipped later, and only once."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from tracked_runs import add_rows, edit_mark, finish, runs_of, stage, tracking

from dinov2.params import InputError, flatten
from dinov2.records import write_json
from tasks.server import TrackingParams
from tasks.shipping import Shipped
from tasks.system import STARTS
from tasks.tracked import PARENT_RUN, TROUBLE, WORK, end_parent, read_mark, start_parent
from tasks.tracking import OUTAGES, Standing, follow, ship, ship_all, standing, told
from tasks.views import TAG, save_views, views

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")
GONE = [1, 0.0]  # no process began with the epoch


def test_models_are_below_their_stage_and_stages_below_the_pipeline(
    given: TrackingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = start_parent("full-pipeline", {"prefect_flow_run": "f1"})
    monkeypatch.setenv(PARENT_RUN, key)
    tracked = stage("distill", models=["small", "large"])
    add_rows(tracked.work, range(3), **{"small/knn": 0.25, "large/knn": 0.5, "lr": 0.1})
    finish(tracked, {"small/final": 1.0, "large/final": 2.0}, Path("data/distill"))
    end_parent(key, "FINISHED", {"best": 0.5}, [])
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    pipeline, distill = runs["pipeline", "full-pipeline"], runs["stage", "distill"]
    assert distill.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
    assert pipeline.data.metrics["best"] == 0.5
    assert distill.data.metrics["small/final"] == 1.0
    for name, knn, final in (("small", 0.25, 1.0), ("large", 0.5, 2.0)):
        run = runs["model", name]
        assert run.data.tags["mlflow.parentRunId"] == distill.info.run_id
        assert run.data.metrics == {"total": 8.0, "lr": 0.1, "knn": knn, "final": final}
        assert run.data.params == {"model.dim": "8", "inputs.retrieve": "0123456789abcdef" * 4}
        history = server.client.get_metric_history(run.info.run_id, "total")
        assert [(point.step, point.value) for point in history] == [(0, 10.0), (1, 9.0), (2, 8.0)]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_stage_of_one_call_a_model_has_one_run_for_all(given: TrackingParams) -> None:
    for model, value in (("pretrain", 0.5), ("random", 0.25)):
        finish(stage("evaluate", model=model), {"knn_top1": value}, Path("data/evaluate"))
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    assert set(runs) == {("stage", "evaluate"), ("model", "evaluate@pretrain"), ("model", "evaluate@random")}
    own = runs["stage", "evaluate"]
    assert own.data.metrics == {"pretrain/knn_top1": 0.5, "random/knn_top1": 0.25}
    assert runs["model", "evaluate@random"].data.metrics == {"knn_top1": 0.25}
    assert runs["model", "evaluate@random"].data.tags["mlflow.parentRunId"] == own.info.run_id


def test_a_stage_that_was_killed_is_one_run_when_taken_up_again(given: TrackingParams) -> None:
    first = stage("pretrain", models=["pretrain"])
    first.__enter__()
    add_rows(first.work, range(2))
    assert ship(given, WORK) is None
    assert standing(given, WORK).running == 1
    edit_mark(first, process=GONE)  # killed: nobody wrote an end
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    assert runs["stage", "pretrain"].info.status == "KILLED"

    again = stage("pretrain", models=["pretrain"])
    add_rows(again.work, range(2, 4))
    finish(again, {"total": 7.0}, Path("data/pretrain"))
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    assert runs["model", "pretrain"].info.status == "FINISHED"
    history = server.client.get_metric_history(runs["model", "pretrain"].info.run_id, "total")
    assert [point.step for point in history] == [0, 1, 2, 3]  # the last metric is the last point, not one more


def test_shipping_again_what_is_there_adds_nothing(given: TrackingParams) -> None:
    """As after a kill, or an answer that was lost: all is shipped, and nothing is remembered but the key."""
    tracked = stage("pretrain", models=["pretrain"])
    add_rows(tracked.work, range(3))
    finish(tracked, {"final": 0.5}, Path("data/pretrain"))
    finish(stage("evaluate", model="pretrain"), {"knn_top1": 0.5}, Path("data/evaluate"))
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    for path in WORK.glob("*/*/mlflow.json"):
        write_json(path, json.loads(path.read_text()) | {"servers": {}})
    assert standing(given, WORK).left == 2
    assert ship(given, WORK) is None
    _, again = runs_of(given)
    assert {run.info.run_id for run in again.values()} == {run.info.run_id for run in runs.values()}
    for kind in ("model", "stage"):
        run, before = again[kind, "pretrain"], runs[kind, "pretrain"]
        assert run.inputs.dataset_inputs == before.inputs.dataset_inputs
        for metric in run.data.metrics:
            history = server.client.get_metric_history(run.info.run_id, metric)
            assert len(history) == (3 if metric == "total" else 1), (kind, metric)


@pytest.mark.parametrize("name", ["mlflow.json", "tracking.json"])
def test_a_file_that_a_power_cut_damaged_stops_nothing(given: TrackingParams, name: str) -> None:
    """What it said is lost: the run is shipped anew, or not at all. Other runs are shipped as ever."""
    tracked = stage("pretrain", models=["pretrain"])
    finish(tracked, {"final": 0.5}, Path("data/pretrain"))
    assert ship(given, WORK) is None
    path = tracked.work / name
    path.write_text(path.read_text()[:40])
    finish(stage("crawl"), {}, Path("data/crawl"))
    assert ship(given, WORK) is None
    assert standing(given, WORK) == Standing(shipped=2 if name == "mlflow.json" else 1, running=0, left=0)
    assert (tracked.work / f"{name}.damaged").exists()


def test_a_run_tells_its_data_its_code_its_jobs_and_its_machine(given: TrackingParams) -> None:
    Path("dvc.lock").write_text("schema: '2.0'\n")
    tracked = stage("crawl")
    (tracked.work / STARTS).mkdir()
    start = json.dumps({"time": 1.0, "host": "node7", "slurm": True}) + "\n"
    (tracked.work / STARTS / "811.jsonl").write_text(2 * start)  # queued again under its number
    (tracked.work / STARTS / "812.jsonl").write_text(start)
    sample = {"step": 0, "time": 1001.0, "cpu_utilization_percentage": 50.0}
    (tracked.work / "system.jsonl").write_text(json.dumps(sample) + "\n" + '{"step": 1, "ti')
    finish(tracked, {"num_pages": 2.0}, Path("data/crawl"))
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    run = runs["stage", "crawl"]
    assert run.data.tags["slurm_job_ids"] == "811, 812"
    assert run.data.tags["num_job_starts"] == "3"
    assert run.data.tags["job_hosts"] == "node7"
    assert run.data.tags["mlflow.source.git.commit"] == run.data.tags["commit"]
    assert len(run.data.tags["dvc_lock"]) == 64
    assert run.data.metrics == {"num_pages": 2.0, "system/cpu_utilization_percentage": 50.0}
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data/retrieve", "0123456789abcdef")
    assert run.data.params["inputs.retrieve"] == "0123456789abcdef" * 4


def test_several_machines_are_told_apart(given: TrackingParams) -> None:
    tracked = stage("pretrain", models=["pretrain"])
    for name, value in (("system", 10.0), ("system-1", 90.0)):
        line = json.dumps({"step": 0, "time": 1001.0, "cpu_utilization_percentage": value})
        (tracked.work / f"{name}.jsonl").write_text(line + "\n")
    finish(tracked, {}, Path("data/pretrain"))
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    expected = {"system/node_0/cpu_utilization_percentage": 10.0, "system/node_1/cpu_utilization_percentage": 90.0}
    assert runs["stage", "pretrain"].data.metrics == expected


def test_files_are_kept_for_a_server_that_comes_later_and_go_when_shipped(given: TrackingParams) -> None:
    out = Path("data/distill")
    (out / "figures").mkdir(parents=True)
    for name in ("figures/small-losses.png", "figures/all.png", "page.html"):
        (out / name).write_text("first")
    tracked = stage("distill", models=["small", "large"])
    finish(tracked, {}, out)
    (out / "page.html").write_text("of a later run")
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    listed = {
        key: {item.path for item in server.client.list_artifacts(run.info.run_id)} for key, run in runs.items()
    }
    assert listed == {
        ("stage", "distill"): {"figures", "page.html"},
        ("model", "small"): {"figures"},
        ("model", "large"): set(),
    }
    page = server.client.download_artifacts(runs["stage", "distill"].info.run_id, "page.html")
    assert Path(page).read_text() == "first"
    assert not list((tracked.work / "tracking").iterdir())


def test_a_failure_says_why(given: TrackingParams) -> None:
    finish(stage("filter"), {"kept_share": 0.1}, Path("data/filter"), status="FAILED")
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    run = runs["stage", "filter"]
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "gate missed")
    assert run.data.metrics == {"kept_share": 0.1}


def test_an_end_that_is_told_while_the_process_dies_is_heard(given: TrackingParams, tmp_path: Path) -> None:
    tracked = stage("crawl")
    finish(tracked, {}, Path("data/crawl"))
    edit_mark(tracked, process=GONE)
    told_of = read_mark(tracked.work)
    assert told_of is not None and told_of[1] == "FINISHED"


def test_a_stage_taken_for_killed_is_shipped_when_it_tells_its_end(given: TrackingParams) -> None:
    """As one that runs on another machine, whose processes can't be seen from here."""
    tracked = stage("pretrain", models=["pretrain"])
    add_rows(tracked.work, range(2))
    tracked.__enter__()
    edit_mark(tracked, process=GONE)
    assert ship(given, WORK) is None
    assert standing(given, WORK) == (1, 0, 0)
    add_rows(tracked.work, range(2, 4))
    tracked.finish("FINISHED", Path("data/pretrain"), {"final": 0.5})
    tracked.__exit__()
    assert standing(given, WORK) == (0, 0, 1)
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    run = runs["model", "pretrain"]
    assert (run.info.status, run.data.metrics["final"]) == ("FINISHED", 0.5)
    assert [point.step for point in server.client.get_metric_history(run.info.run_id, "total")] == [0, 1, 2, 3]


def test_one_folder_that_cannot_be_shipped_does_not_keep_others_from_it(given: TrackingParams) -> None:
    bad = stage("crawl", seed=2)
    finish(bad, {}, Path("data/crawl"))
    edit_mark(bad, tags={})
    finish(stage("filter"), {}, Path("data/filter"))
    with pytest.raises(KeyError):
        ship_all(given, WORK, Shipped())
    _, runs = runs_of(given)
    assert set(runs) == {("stage", "filter")}


def test_a_second_background_process_ends_at_once(given: TrackingParams) -> None:
    finish(stage("crawl"), {}, Path("data/crawl"))
    with (WORK / "tracking.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        follow(given, WORK)
    assert standing(given, WORK).left == 1


def test_the_background_process_ships_until_nothing_runs(given: TrackingParams) -> None:
    finish(stage("crawl"), {}, Path("data/crawl"))
    follow(given, WORK)
    assert standing(given, WORK) == (1, 0, 0)
    assert told(given, WORK) == f"{given.uri} has all of 1 runs of stages and pipelines"
    assert not (WORK / TROUBLE).exists() and not (WORK / OUTAGES).exists()


def test_a_pipeline_whose_process_was_killed_is_killed(given: TrackingParams) -> None:
    key = start_parent("full-pipeline", {})
    path = WORK / "pipeline" / key / "tracking.json"
    told_of = read_mark(path.parent)
    assert told_of is not None and told_of[1] == "RUNNING"
    write_json(path, json.loads(path.read_text()) | {"process": GONE})
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    assert runs["pipeline", "full-pipeline"].info.status == "KILLED"


def test_keys_of_any_kind_are_shipped(given: TrackingParams) -> None:
    """Of classes that are folders of a person, for example, which are sources in a mixture."""
    tracked = stage("retrieve")
    finish(tracked, {"of cats (long), 1": 0.5, "/x//y": 1.0, 300 * "z": 2.0}, Path("data/retrieve"))
    edit_mark(tracked, params={"mixture": {"cats (long)": 0.25, "": 1.0, "a/../b": "x"}})
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    run = runs["stage", "retrieve"]
    assert run.data.metrics == {"of cats _long__ 1": 0.5, "_x__y": 1.0, 250 * "z": 2.0}
    expected = {"mixture.cats _long_": "0.25", "mixture.": "1.0", "mixture.a_.._b": "x"}
    assert {key: run.data.params[key] for key in expected} == expected


def test_a_run_that_somebody_deleted_is_made_again_whole(given: TrackingParams, empty_store: Path) -> None:
    for _ in range(2):
        tracked = stage("pretrain", models=["pretrain"])
        if not (tracked.work / "metrics.jsonl").exists():
            add_rows(tracked.work, range(3))
        finish(tracked, {"final": 0.5}, Path("data/pretrain"))
        assert ship(given, WORK) is None
        server, runs = runs_of(given)
        assert runs["model", "pretrain"].data.metrics == {"total": 8.0, "final": 0.5}
        server.client.delete_run(runs["model", "pretrain"].info.run_id)
    shutil.copy(empty_store, "mlflow.db")  # as good as another server
    finish(stage("pretrain", models=["pretrain"]), {"final": 0.5}, Path("data/pretrain"))
    assert ship(given, WORK) is None
    _, runs = runs_of(given)
    assert runs["model", "pretrain"].data.metrics == {"total": 8.0, "final": 0.5}


def test_a_login_in_params_is_not_shipped_though_no_stage_has_refused_it_yet(given: TrackingParams) -> None:
    Path("params.yaml").write_text("store: {url: 's3://me:hidden@bucket', jobs: 2}  # was ftp://me:hidden@host/x\n")
    key = start_parent("full-pipeline", {})
    end_parent(key, "FAILED", {}, [])
    shipped = WORK / "pipeline" / key
    assert not [path for path in shipped.rglob("*") if path.is_file() and "hidden" in path.read_text()]
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    run = runs["pipeline", "full-pipeline"]
    assert run.data.params == {"store.url": "s3://...@bucket", "store.jobs": "2"}
    assert "hidden" not in Path(server.client.download_artifacts(run.info.run_id, "params.yaml")).read_text()


def test_views_are_there_from_the_first_run_on(given: TrackingParams) -> None:
    finish(stage("crawl"), {}, Path("data/crawl"))
    assert ship(given, WORK) is None
    server, _ = runs_of(given)
    tags = server.client.get_experiment(server.experiment_id).tags
    assert {key: json.loads(tags[TAG + key]) for key in views()} == views()
    links = save_views(server)
    page = f"http://127.0.0.1:5000/#/experiments/{server.experiment_id}/runs"
    assert links["models"] == f"{page}?viewStateShareKey=models&compareRunsMode=CHART"


@pytest.mark.parametrize("uri", ["mlflow.db", "sqlight:///x.db", "ftp://host/x", "http://h:99999", "http://h:x", "http://[::1",
                                 "http://.a", "http:///x"])  # fmt: skip
def test_an_address_of_no_known_kind_is_a_mistake(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is"):
        tracking(uri).absolute_uri()


def test_a_relative_sqlite_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking("sqlite:///mlflow.db").absolute_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking("sqlite:////x/y.db").absolute_uri() == "sqlite:////x/y.db"


def test_nested_params_are_flat_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
