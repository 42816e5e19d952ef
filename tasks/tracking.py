"""MLflow: one parent run a pipeline run, one child a stage; curves, params, metrics and figures to compare runs by.

The record of a run is `metrics.jsonl` in its work folder, and `tracking.json` beside it says what else there is to
ship. One background process a repository ships what is new, in batches, while stages run: the import and first use of
MLflow cost five seconds, which no stage waits for, and jobs need no tracking server. One that is down or slow costs
training nothing: a sentence says so, and what was not shipped is shipped by the next stage, or by hand.

Run:   python -m tasks.tracking             ship all that is left, then end
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import psutil
from pydantic import Field

from dinov2.params import InputError, Params, load_section
from dinov2.records import write_json
from tasks.tracked import MARK, TROUBLE

LATER = "the run goes on; its curves are kept and shipped by `python -m tasks.tracking`"
BATCH_METRICS = 1000  # MLflow's limits of one request
BATCH_PARAMS = 100
SCHEMES = ("sqlite", "http", "https", "file", "postgresql", "mysql", "mssql", "databricks")


class TrackingParams(Params):
    """Section `tracking` of params.yaml; no stage depends on it."""

    uri: str
    """MLflow tracking URI; `sqlite:///mlflow.db` is a file in the repository."""
    experiment: str
    """MLflow experiment that holds the runs."""
    ship_every_s: Annotated[float, Field(gt=0)]
    """Seconds between two batches of curves."""
    idle_s: Annotated[float, Field(gt=0)]
    """The background process ends after this long without a stage."""

    def absolute_uri(self) -> str:
        """The URI with a relative SQLite path made absolute, since jobs may run elsewhere. Raises InputError."""
        scheme, separator, rest = self.uri.partition("://")
        if not separator or scheme.partition("+")[0] not in SCHEMES:
            raise InputError(f"tracking.uri is '{self.uri}', of no kind MLflow knows; write e.g. sqlite:///mlflow.db")
        if scheme == "sqlite" and not rest.startswith("//"):
            return f"sqlite:////{Path(rest[1:]).absolute().as_posix().lstrip('/')}"
        return self.uri


    def trouble(self) -> str | None:
        """The sentence for a server that can be seen at once not to answer; None for one that may, and for files."""
        address = urlsplit(self.uri)
        if address.scheme not in ("http", "https") or address.hostname is None:
            return None
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=1).close()
        except OSError as error:
            return f"tracking server {self.uri} can't be reached ({error.strerror or error}); {LATER}"
        return None


def connect(params: TrackingParams) -> tuple[Any, str]:
    """An MLflow client and the id of the experiment, made where it is missing. The first call takes five seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default of 7 blocks for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = MlflowClient(tracking_uri=params.absolute_uri())
    experiment = client.get_experiment_by_name(params.experiment)
    if experiment is not None:
        return client, experiment.experiment_id
    artifacts = Path("mlartifacts").absolute().as_uri() if params.uri.startswith("sqlite") else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the page shows runs and curves, not chats
    return client, client.create_experiment(params.experiment, artifact_location=artifacts, tags=kind)


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


class ShippedRun:
    """One MLflow run of one stage; taken up again by its id in `work/mlflow.json`, so a preempted stage has one run."""

    def __init__(self, uri: str, client: Any, experiment: str, work: Path) -> None:
        self.work = work
        self.client = client
        self.experiment = experiment
        self.state_path = work / "mlflow.json"
        self.state: dict[str, Any] = {"uri": uri, "run_id": None, "shipped_bytes": 0, "step": 0, "begun": 0, "ended": 0}
        if self.state_path.exists():
            remembered = json.loads(self.state_path.read_text())
            if remembered["uri"] == uri:
                self.state = remembered

    def ship(self, mark: Mapping[str, Any]) -> bool:
        """Ship what is new; returns whether the stage's start that `mark` tells of is shipped to its end."""
        attempt = mark["attempt"]
        if self.state["ended"] == attempt:
            return True
        if self.state["begun"] != attempt:
            self._begin(mark)
        self.ship_curves()
        status = mark["status"]
        if status == "RUNNING" and not is_alive(*mark["process"]):
            status = "KILLED"
        if status == "RUNNING":
            return False
        self.end(status, mark["metrics"], [Path(path) for path in mark["files"] if Path(path).exists()])
        self.state["ended"] = attempt
        self._save()
        return True

    def _begin(self, mark: Mapping[str, Any]) -> None:
        if self.state["run_id"] is None:
            run = self.client.create_run(self.experiment, run_name=mark["name"], tags=mark["tags"])
            self.state["run_id"] = run.info.run_id
            self._save()
            from mlflow.entities import Param

            flat = [Param(key, str(value)[:6000]) for key, value in flatten(mark["values"])]
            for start in range(0, len(flat), BATCH_PARAMS):
                self.client.log_batch(run.info.run_id, params=flat[start : start + BATCH_PARAMS])
        else:
            for key, value in mark["tags"].items():
                self.client.set_tag(self.state["run_id"], key, value)
            self.client.update_run(self.state["run_id"], status="RUNNING")
        self.state["begun"] = mark["attempt"]
        self._save()

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
        rows = [json.loads(line) for line in whole.splitlines()]
        points = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key not in ("time", "step") and isinstance(value, int | float)
        ]
        for start in range(0, len(points), BATCH_METRICS):
            self.client.log_batch(self.state["run_id"], metrics=points[start : start + BATCH_METRICS])
        self.state["shipped_bytes"] += len(whole)
        self.state["step"] = max([self.state["step"], *(int(row["step"]) for row in rows)])
        self._save()

    def end(self, status: str, metrics: Mapping[str, float], files: list[Path]) -> None:
        """Ship the last metrics and the files (figures to their own folder) and end the run."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        run_id = self.state["run_id"]
        last = [Metric(key, float(value), now_ms, self.state["step"]) for key, value in metrics.items()]
        self.client.log_batch(run_id, metrics=last)
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


def is_alive(pid: int, started: float) -> bool:
    """Whether the process with that number and start time still runs."""
    try:
        return psutil.Process(pid).create_time() == started
    except psutil.NoSuchProcess:
        return False


def ship_all(params: TrackingParams, root: Path) -> tuple[int, int]:
    """Ship what is new of every stage below `root`; returns how many are shipped to their end, and how many are not."""
    client, experiment = connect(params)
    ended = running = 0
    for path in sorted(root.glob(f"*/*/{MARK}")):
        if ShippedRun(params.uri, client, experiment, path.parent).ship(json.loads(path.read_text())):
            ended += 1
        else:
            running += 1
    return ended, running


def _locked(handle: int) -> bool:
    """Whether the lock could be taken; tries for a while, since the process that has it may be about to end."""
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.5)
    return False


def follow(params: TrackingParams, root: Path) -> None:
    """Ship until no stage has been running for `idle_s`; ends at once where another process does this already."""
    with (root / "tracking.lock").open("a") as lock:
        if not _locked(lock.fileno()):
            return
        last_running = time.monotonic()
        while True:
            try:
                _, running = ship_all(params, root)
                (root / TROUBLE).unlink(missing_ok=True)
            except Exception as error:  # MLflow raises of every kind; what is left is tried again
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                (root / TROUBLE).write_text(f"tracking server {params.uri} can't be reached ({reason}); {LATER}\n")
                marks = [json.loads(path.read_text()) for path in root.glob(f"*/*/{MARK}")]
                running = sum(mark["status"] == "RUNNING" and is_alive(*mark["process"]) for mark in marks)
            if running:
                last_running = time.monotonic()
            elif time.monotonic() - last_running >= params.idle_s or os.fstat(lock.fileno()).st_nlink == 0:
                return  # right after a look, so that a stage that has just begun is not missed; or `make clean` came by
            time.sleep(params.ship_every_s)


def main() -> int:
    """The command line."""
    root = Path("work")
    try:
        params = load_section(Path("params.yaml"), "tracking", TrackingParams)
        if sys.argv[1:] == ["--follow"]:
            follow(params, root)
            return 0
        ended, running = ship_all(params, root)
    except InputError as error:
        sys.stderr.write(f"tracking: {error}\n")
        return 2
    sys.stdout.write(f"{params.uri} has all of {ended} runs and what there is so far of {running}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
