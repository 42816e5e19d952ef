"""MLflow: one parent run a pipeline run, one child a stage; curves, params, metrics and figures to compare runs by.

The record of a run is `metrics.jsonl` in its work folder. A thread of the submitting process ships what is new there in
batches, so that jobs need no tracking server, and one that is down or slow costs training nothing: the run goes on, a
sentence says so, and what was not shipped is shipped when the stage is next run, or by `python -m tasks.tracking`.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dinov2.params import InputError, Params, load_section
from dinov2.records import write_json

PARENT_RUN = "DINOV2_MLFLOW_PARENT_RUN_ID"
BATCH_METRICS = 1000  # MLflow's limit of one request
SCHEMES = ("sqlite", "http", "https", "file", "postgresql", "mysql", "mssql", "databricks")


class TrackingParams(Params):
    """Section `tracking` of params.yaml; no stage depends on it."""

    uri: str
    """MLflow tracking URI; `sqlite:///mlflow.db` is a file in the repository."""
    experiment: str
    """MLflow experiment that holds the runs."""
    ship_every_s: Annotated[float, Field(gt=0)]
    """Seconds between two batches of curves."""
    patience_s: Annotated[float, Field(gt=0)]
    """How long the end of a stage waits for the server to take the rest."""

    def absolute_uri(self) -> str:
        """The URI with a relative SQLite path made absolute, since jobs may run elsewhere. Raises InputError."""
        scheme, separator, rest = self.uri.partition("://")
        if not separator or scheme.partition("+")[0] not in SCHEMES:
            raise InputError(f"tracking.uri is '{self.uri}', of no kind MLflow knows; write e.g. sqlite:///mlflow.db")
        if scheme == "sqlite" and not rest.startswith("//"):
            return f"sqlite:////{Path(rest[1:]).absolute().as_posix().lstrip('/')}"
        return self.uri


def connect(params: TrackingParams) -> tuple[Any, str]:
    """An MLflow client and the id of the experiment, made where it is missing. Slow (seconds): import and first use."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default of 7 blocks for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient  # 2.5 s: imported by the shipping thread, beside the job

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = MlflowClient(tracking_uri=params.absolute_uri())
    experiment = client.get_experiment_by_name(params.experiment)
    if experiment is not None:
        return client, experiment.experiment_id
    artifacts = Path("mlartifacts").absolute().as_uri() if params.uri.startswith("sqlite") else None
    return client, client.create_experiment(params.experiment, artifact_location=artifacts)


def start_parent(params: TrackingParams, name: str, tags: Mapping[str, str]) -> str:
    """Make the parent run of a pipeline run and return its id; raises what MLflow raises when it can't be reached."""
    client, experiment = connect(params)
    return client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id


def end_parent(
    params: TrackingParams, run_id: str, status: str, metrics: Mapping[str, float], files: list[Path]
) -> None:
    """Give the parent run its last metrics and files and end it (status FINISHED, FAILED or KILLED)."""
    client, _ = connect(params)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, status)


class Shipper:
    """Ships one stage's run to MLflow from a thread; nothing it meets is ever raised to the caller.

    with Shipper(params, work, name="pretrain", values={...}, tags={...}, warn=print) as shipper:
        ... the job runs, `work/metrics.jsonl` grows ...
        shipper.finish("FINISHED", metrics, files)
    """

    def __init__(
        self,
        params: TrackingParams,
        work: Path,
        *,
        name: str,
        values: Mapping[str, object],
        tags: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        self.params = params
        self.work = work
        self.name = name
        self.values = values
        self.tags = tags
        self.warn = warn
        self._ended = threading.Event()
        self._end: tuple[str, Mapping[str, float], list[Path]] = ("KILLED", {}, [])
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def __enter__(self) -> "Shipper":
        self._thread.start()
        return self

    def finish(self, status: str, metrics: Mapping[str, float], files: list[Path]) -> None:
        """What the run ends with; shipped when the body is left."""
        self._end = (status, metrics, files)

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(self.params.patience_s)
        if self._thread.is_alive():
            self.warn(f"tracking server {self.params.uri} is slow; {self._later()}")

    def _later(self) -> str:
        return "the run goes on, and its curves are kept and shipped by `python -m tasks.tracking`"

    def _run(self) -> None:
        try:
            run = ShippedRun(self.params, self.work, self.name, self.values, self.tags)
            while not self._ended.wait(self.params.ship_every_s):
                run.ship_curves()
            run.ship_curves()
            run.end(*self._end)
        except Exception as error:  # MLflow raises of every kind; none of them may reach the stage
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._remember()
            self.warn(f"tracking server {self.params.uri} can't be reached ({reason[:200]}); {self._later()}")

    def _remember(self) -> None:
        status, metrics, files = self._end
        begin = {"name": self.name, "values": self.values, "tags": self.tags}
        ending = {"status": status, "metrics": metrics, "files": [str(path) for path in files]}
        write_json(self.work / "unshipped.json", {**begin, **ending})


class ShippedRun:
    """One MLflow run of one stage; taken up again by its id in `work/mlflow.json`, so a preempted stage has one run."""

    def __init__(
        self, params: TrackingParams, work: Path, name: str, values: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self.work = work
        self.state_path = work / "mlflow.json"
        self.client, experiment = connect(params)
        self.state: dict[str, Any] = {"uri": params.uri, "experiment": experiment, "run_id": None, "shipped_bytes": 0}
        if self.state_path.exists():
            remembered = json.loads(self.state_path.read_text())
            if remembered["uri"] == params.uri:
                self.state = remembered
        parent = {"mlflow.parentRunId": os.environ[PARENT_RUN]} if os.environ.get(PARENT_RUN) else {}
        if self.state["run_id"] is None:
            run = self.client.create_run(experiment, run_name=name, tags={**tags, **parent})
            self.state["run_id"] = run.info.run_id
            self._save()
            from mlflow.entities import Param

            flat = [Param(key, str(value)[:6000]) for key, value in flatten(values)]
            self.client.log_batch(run.info.run_id, params=flat[:100])
            for start in range(100, len(flat), 100):
                self.client.log_batch(run.info.run_id, params=flat[start : start + 100])
        else:
            for key, value in {**tags, **parent}.items():
                self.client.set_tag(self.state["run_id"], key, value)
            self.client.update_run(self.state["run_id"], status="RUNNING")

    def _save(self) -> None:
        write_json(self.state_path, self.state)

    def ship_curves(self) -> None:
        """Ship the whole lines that `metrics.jsonl` gained; the same line twice is one point, so this may repeat."""
        path = self.work / "metrics.jsonl"
        if not path.exists() or path.stat().st_size <= self.state["shipped_bytes"]:
            return
        from mlflow.entities import Metric

        with path.open("rb") as stream:
            stream.seek(self.state["shipped_bytes"])
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        points = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in map(json.loads, whole.splitlines())
            for key, value in row.items()
            if key not in ("time", "step") and isinstance(value, int | float)
        ]
        for start in range(0, len(points), BATCH_METRICS):
            self.client.log_batch(self.state["run_id"], metrics=points[start : start + BATCH_METRICS])
        self.state["shipped_bytes"] += len(whole)
        self._save()

    def end(self, status: str, metrics: Mapping[str, float], files: list[Path]) -> None:
        """Ship the last metrics and the files (figures to their own folder) and end the run."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        run_id = self.state["run_id"]
        self.client.log_batch(run_id, metrics=[Metric(key, float(value), now_ms, 0) for key, value in metrics.items()])
        for path in files:
            self.client.log_artifact(run_id, str(path), "figures" if path.suffix == ".png" else None)
        self.client.set_terminated(run_id, status)


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """("model.dim", 128), ... of a nested mapping, as MLflow's parameters."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def replay(params: TrackingParams, root: Path) -> int:
    """Ship every run below `root` that a server did not take when it ran; returns their number."""
    marks = sorted(root.glob("*/*/unshipped.json"))
    for mark in marks:
        pending = json.loads(mark.read_text())
        run = ShippedRun(params, mark.parent, pending["name"], pending["values"], pending["tags"])
        run.ship_curves()
        run.end(pending["status"], pending["metrics"], [Path(path) for path in pending["files"] if Path(path).exists()])
        mark.unlink()
    return len(marks)


def main() -> int:
    """Ship what is left: `python -m tasks.tracking`."""
    try:
        params = load_section(Path("params.yaml"), "tracking", TrackingParams)
        shipped = replay(params, Path("work"))
    except InputError as error:
        sys.stderr.write(f"tracking: {error}\n")
        return 2
    sys.stdout.write(f"shipped {shipped} runs to {params.uri}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
