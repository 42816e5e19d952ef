"""The whole pipeline as a Prefect flow: pages in, distilled and evaluated backbones and a report out.

Run:   prefect deployment run full-pipeline         (after `make up`)
       python -m flows.full_pipeline                (with a server, e.g. that of `make up`)

dvc.yaml is the DAG; STAGES names its stages in order for people to read, and a test holds the two together. A stage
that did not change is not run; one that was interrupted goes on where it was.
"""

import os
import sys
from pathlib import Path
from typing import Any

from prefect import Flow, flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run

from dinov2.params import InputError, load_section
from flows.artifacts import publish_funnel, publish_link, publish_metrics, stage_metrics
from flows.repro import StageCrashError, StageMistakeError, repro
from tasks.tracked import PARENT_RUN
from tasks.tracking import TrackingParams, end_parent, start_parent

STAGES = (
    "crawl",
    "download",
    "filter",
    "bootstrap",
    "embed",
    "dedup",
    "retrieve",
    "pretrain",
    "highres",
    "distill",
    "evaluate",
    "report",
)
PARENT_FILE = Path("work/mlflow-parent.txt")


def _end_parent_as(status: str, metrics: dict[str, float], files: list[Path]) -> None:
    run_id = os.environ.pop(PARENT_RUN, None) or (PARENT_FILE.read_text().strip() if PARENT_FILE.exists() else None)
    if run_id is None:
        return
    PARENT_FILE.unlink(missing_ok=True)
    try:
        end_parent(load_section(Path("params.yaml"), "tracking", TrackingParams), run_id, status, metrics, files)
    except Exception as error:  # a tracking server that is down never stops the pipeline
        sys.stderr.write(f"tracking: the parent run {run_id} could not be ended ({error})\n")


def _on_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    _end_parent_as("FAILED", {}, [])


def _on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    _end_parent_as("KILLED", {}, [])


def _begin_parent() -> None:
    """One MLflow run that every stage's run hangs below; without a server the pipeline goes on without it."""
    log = get_run_logger()
    tracking = load_section(Path("params.yaml"), "tracking", TrackingParams)
    tracking.absolute_uri()
    if PARENT_FILE.exists():  # a pipeline that was killed: its run ends here
        _end_parent_as("KILLED", {}, [])
    try:
        name = flow_run.get_name() or "full-pipeline"
        os.environ[PARENT_RUN] = start_parent(tracking, name, {"prefect_flow_run": str(flow_run.get_id())})
    except InputError:
        raise
    except Exception as error:  # MLflow raises of every kind
        log.warning("tracking server %s can't be reached (%s); the pipeline goes on", tracking.uri, error)
        return
    PARENT_FILE.parent.mkdir(exist_ok=True)
    PARENT_FILE.write_text(os.environ[PARENT_RUN])
    link = f"http://127.0.0.1:5000/#/runs/{os.environ[PARENT_RUN]}"
    publish_link("mlflow-run", "make mlflow", link, "The MLflow run")


@flow(name="full-pipeline", on_failure=[_on_failure], on_crashed=[_on_failure], on_cancellation=[_on_cancellation])
def full_pipeline() -> None:
    """Bring every stage up to date, in order; stops at the first that fails or misses its gate, with its sentence."""
    log = get_run_logger()
    _begin_parent()
    for stage in STAGES:
        repro(stage)
        publish_metrics(stage)
        if stage == "retrieve":
            publish_funnel()
    summary = Path("data/report/summary.txt")
    log.info("\n%s", summary.read_text())
    _end_parent_as("FINISHED", stage_metrics("report"), [Path("data/report/report.html")])


@flow(name="stage")
def one_stage(name: str, force: bool = False) -> None:
    """Bring one stage up to date, whatever the state of those before it; `force` runs it even if nothing changed."""
    repro(name, force=force)
    publish_metrics(name)


def main() -> int:
    """Run the pipeline here and now."""
    try:
        full_pipeline()
    except (StageMistakeError, InputError) as error:
        sys.stderr.write(f"full-pipeline: {error}\n")
        return 2
    except StageCrashError as error:
        sys.stderr.write(f"full-pipeline: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
