"""The run of a pipeline run in MLflow, which the runs of its stages hang below; shipped like theirs."""

import os
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run

from dinov2.params import load_section, read_yaml
from flows.artifacts import publish_link
from tasks.server import TrackingParams
from tasks.tracked import PARENT_RUN, WORK, end_parent, start_parent
from tasks.tracking import told

PARENT_FILE = Path("work/mlflow-parent.txt")


def _tracking() -> TrackingParams:
    return load_section(Path("params.yaml"), "tracking", TrackingParams)


def begin_parent(flow: str) -> None:
    """A run begins that every stage's run hangs below, whatever the server does."""
    _tracking().absolute_uri()
    if PARENT_FILE.exists():  # a pipeline that was killed: its run ends here
        end_parent_as("KILLED", {}, [])
    key = start_parent(flow_run.get_name() or flow, {"prefect_flow_run": str(flow_run.get_id())})
    os.environ[PARENT_RUN] = key
    PARENT_FILE.parent.mkdir(exist_ok=True)
    PARENT_FILE.write_text(f"{key} {flow_run.get_id()}")
    pages: Any = read_yaml(Path("params.yaml"))["report"]
    link = f"{pages['mlflow_url']}?searchFilter=tags.run_key%3D%22{key}%22"
    publish_link("mlflow-run", "make mlflow", link, "The MLflow run")


def end_parent_as(
    status: str, metrics: dict[str, float], files: list[Path], *, of_flow_run: str | None = None
) -> None:
    """End the run with FINISHED, FAILED or KILLED, if there is one; `of_flow_run`: only if it belongs to that."""
    key, _, owner = PARENT_FILE.read_text().strip().partition(" ") if PARENT_FILE.exists() else ("", "", "")
    if not key or of_flow_run not in (None, owner):
        return
    os.environ.pop(PARENT_RUN, None)
    PARENT_FILE.unlink(missing_ok=True)
    end_parent(key, status, metrics, files)
    if status == "FINISHED":
        get_run_logger().info("tracking: %s", told(_tracking(), WORK))
