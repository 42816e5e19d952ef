"""What the work folders hold becomes MLflow runs: a parent a pipeline run, a child a stage, a grandchild a model.

Whatever is shipped may be shipped again without being there twice: runs are looked up by a key of ours before one is
made, points keep their times, and `mlflow.json` in a work folder remembers how far each server has what. A stage that
is taken up again after a preemption is one run; one that DVC calls once a model (evaluate) has one run for all.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov2.params import flatten
from dinov2.records import read_json, write_json
from tasks.registry import judge, register
from tasks.server import Server, allowed_key
from tasks.system import STARTS, SYSTEM, read_lines
from tasks.tracked import BACKBONES, KEPT, PIPELINES, read_mark

if TYPE_CHECKING:
    from mlflow.entities import Metric, RunTag

BATCH_METRICS = 1000  # MLflow's limits of one request
BATCH_PARAMS = 100
MAX_PARAM_CHARS = 6000
DIGEST_CHARS = 16  # MLflow takes up to 36; the whole is a param
RUN_KEY = "run_key"  # tag by which a run is found again
MEMORY = "mlflow.json"
OWN = ""  # the name of a stage's own run beside those of its models


@dataclass
class Shipped:
    """How much went to a server."""

    runs: set[str] = field(default_factory=set)
    points: int = 0
    files: int = 0


def remembered(work: Path) -> dict[str, Any]:
    """What a work folder knows of each server; of a damaged file nothing, so that all is shipped anew."""
    return read_json(work / MEMORY) or {"servers": {}}


class Shipment:
    """What one work folder has for one server."""

    def __init__(self, server: Server, work: Path, shipped: Shipped) -> None:
        self.server = server
        self.client = server.client
        self.work = work
        told = read_mark(work)
        assert told is not None, f"{work} tells nothing to ship"
        self.mark, self.status = told
        self.shipped = shipped
        self.models: list[str] = list(self.mark["models"])
        self._remembered: dict[str, Any] = {"key": uuid.uuid4().hex} | remembered(work)
        self.state: dict[str, Any] = self._remembered["servers"].setdefault(server.uri, _nothing_shipped())

    def _save(self) -> None:
        write_json(self.work / MEMORY, self._remembered)

    def ship(self) -> None:
        """Ship what is new of the last start, to its end if it has one."""
        if self.state["begun"] != self.mark["attempt"]:
            self._begin()
        self._ship_starts()
        self._ship_curves()
        self._ship_system()
        if self.status == "RUNNING":
            return
        self._end(self.status)
        self.state["ended"] = end_of(self.mark)
        self._save()
        for folder in (self.work / KEPT).glob("*"):
            if int(folder.name) < self.mark["attempt"] or self.mark["status"] != "RUNNING":
                shutil.rmtree(folder, ignore_errors=True)

    def _own(self) -> str:
        """The run of this very call: the stage's, or its model's where all of a stage's models share one."""
        return self.state["runs"][self.models[0] if self.mark["shared"] else OWN]

    def _begin(self) -> None:
        if any(self._is_gone(run) for run in self.state["runs"].values()):
            self.state.update(_nothing_shipped())  # all again, into those that are left and new ones
        self._save()  # its key first
        mark, key = self.mark, self._remembered["key"]
        pipeline = self._pipeline()
        tags = {**_known_to_mlflow(mark["tags"]), "kind": mark["kind"]}
        own_key = f"{mark['name']}/{mark['shared']}/{pipeline or ''}" if mark["shared"] else key
        of_stage = {**tags, "instance": mark["name"], "fingerprint": mark["shared"]} if mark["shared"] else tags
        own = self._run(OWN, own_key, mark["name"], of_stage, pipeline)
        self._log_params(own, mark["params"])
        for model, params in mark["models"].items():
            name = mark["instance"] if mark["shared"] else model
            run = self._run(model, f"{key}/{model}", name, {**tags, "kind": "model", "model": model}, own)
            self._log_params(run, params)
        for run in self.state["runs"].values():
            self._log_inputs(run, is_shared=run == own and mark["shared"] is not None)
        self.state["begun"] = mark["attempt"]
        self._save()

    def _is_gone(self, run: str) -> bool:
        """Whether somebody deleted the run, or the server began anew."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True

    def _pipeline(self) -> str | None:
        """Id of the pipeline's run, which is shipped first."""
        if self.mark["pipeline"] is None:
            return None
        known = remembered(self.work.parents[1] / PIPELINES / self.mark["pipeline"])["servers"]
        return known.get(self.server.uri, {"runs": {}})["runs"].get(OWN)

    def _run(self, name: str, key: str, title: str, tags: Mapping[str, str], parent: str | None) -> str:
        """Id of the run with this key: remembered, found, or made. It runs (again), below `parent`."""
        tags = {**tags, RUN_KEY: key} | ({"mlflow.parentRunId": parent} if parent else {})
        tags = {tag: value for tag, value in tags.items() if value}
        run_id = self.state["runs"].get(name)
        if run_id is None:
            found = self.client.search_runs([self.server.experiment_id], f"tags.{RUN_KEY} = '{key}'", max_results=1)
            run_id = found[0].info.run_id if found else None
        if run_id is None:
            started = int(self.mark["started"] * 1000)
            made = self.client.create_run(self.server.experiment_id, started, run_name=title, tags=tags)
            run_id = made.info.run_id
        else:
            self.client.log_batch(run_id, tags=_run_tags(tags))
            self.client.update_run(run_id, status="RUNNING")
        self.state["runs"][name] = run_id
        self.shipped.runs.add(run_id)
        self._save()
        return run_id

    def _log_params(self, run: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        allowed = {allowed_key(key): str(value)[:MAX_PARAM_CHARS] for key, value in flatten(params).items()}
        flat = [Param(key, value) for key, value in allowed.items()]
        for start in range(0, len(flat), BATCH_PARAMS):
            self.client.log_batch(run, params=flat[start : start + BATCH_PARAMS])

    def _log_inputs(self, run: str, *, is_shared: bool) -> None:
        """Inputs by name and hash: as datasets, which pages show, and as params, which can be compared."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        inputs = self.mark["inputs"]
        if not inputs:
            return
        datasets = []
        for name, (path, digest) in inputs.items():
            source, profile = json.dumps({"uri": path}), json.dumps({"sha256": digest})
            dataset = Dataset(path, digest[:DIGEST_CHARS], "local", source, profile=profile)
            datasets.append(DatasetInput(dataset, tags=[InputTag("mlflow.data.context", name)]))
        self.client.log_inputs(run, datasets)
        if not is_shared:  # where one of them is another for each model
            self.client.log_batch(run, params=[Param(f"inputs.{name}", digest) for name, (_, digest) in inputs.items()])

    def _ship_starts(self) -> None:
        """Numbers of the jobs, all of them where one was queued again or submitted anew."""
        files = sorted((self.work / STARTS).glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        lines = [line for path in files for line in read_lines(path, 0)[0]]
        told = f"{[path.stem for path in files]} {len(lines)}"
        if not lines or told == self.state["starts"]:
            return
        number = "slurm_job_ids" if any(line["slurm"] for line in lines) else "local_job_ids"
        hosts = dict.fromkeys(line["host"] for line in lines)
        tags = {
            number: ", ".join(path.stem for path in files),
            "num_job_starts": str(len(lines)),
            "job_hosts": ", ".join(hosts),
        }
        self.client.log_batch(self._own(), tags=_run_tags(tags))
        self.state["starts"] = told
        self._save()

    def _ship_curves(self) -> None:
        """New lines of metrics.jsonl: to the model that a key is of, else to all models, else to the stage."""
        rows = self._new_lines("metrics.jsonl")
        points: dict[str, list[Metric]] = {}
        for row in rows:
            for key, value in row.items():
                if key not in ("time", "step") and isinstance(value, int | float):
                    for model, name in self._whose(key):
                        points.setdefault(model, []).append(_metric(name, value, row["time"], row["step"]))
            self.state["step"], self.state["time_s"] = row["step"], row["time"]
        for model, own in points.items():
            self._log_points(self.state["runs"][model], own)
        if rows:
            self._save()

    def _whose(self, key: str) -> list[tuple[str, str]]:
        model, slash, name = key.partition("/")
        if slash and model in self.models:
            return [(model, name)]
        return [(model, key) for model in self.models] or [(OWN, key)]

    def _ship_system(self) -> None:
        """New lines of system.jsonl, under MLflow's names; of several machines as it names nodes."""
        files = sorted(self.work.glob(f"{SYSTEM}*.jsonl"))
        for path in files:
            rows = self._new_lines(path.name)
            node = path.stem.partition("-")[2] or "0"
            prefix = f"{SYSTEM}/node_{node}/" if len(files) > 1 else f"{SYSTEM}/"
            points = [
                _metric(prefix + key, value, row["time"], row["step"])
                for row in rows
                for key, value in row.items()
                if key not in ("time", "step")
            ]
            self._log_points(self._own(), points)
            if rows:
                self._save()

    def _new_lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines that a file gained; remembered as shipped at the next save."""
        path, known = self.work / name, self.state["bytes"].get(name, 0)
        if not path.exists() or path.stat().st_size == known:
            return []
        rows, self.state["bytes"][name] = read_lines(path, known if known < path.stat().st_size else 0)
        return rows

    def _log_points(self, run: str, points: "list[Metric]") -> None:
        for start in range(0, len(points), BATCH_METRICS):
            self.client.log_batch(run, metrics=points[start : start + BATCH_METRICS])
        self.shipped.points += len(points)
        if points:
            self.shipped.runs.add(run)

    def _end(self, status: str) -> None:
        """Ship the last metrics, the files and the backbones (all kept until one server has them); end the runs."""
        mark, runs = self.mark, self.state["runs"]
        ended_s = mark["ended"] or mark["started"]
        time_s, step = self.state["time_s"] or ended_s, self.state["step"]
        prefix = f"{self.models[0]}/" if mark["shared"] else ""
        points = {OWN: [_metric(prefix + key, value, time_s, step) for key, value in mark["metrics"].items()]}
        for key, value in mark["metrics"].items():
            for model, name in self._whose(key):
                if model != OWN:
                    points.setdefault(model, []).append(_metric(name, value, time_s, step))
        for model, own in points.items():
            self._log_points(runs[model], own)
        kept = self.work / KEPT / str(mark["attempt"])
        for path in [kept / name for name in mark["files"] if (kept / name).exists()]:
            self._log_file(path)
        for model, sha256 in mark["backbones"].items():
            if (kept / BACKBONES / model).exists():
                register(self.server, model, runs[model], kept / BACKBONES / model, sha256)
                self.shipped.files += 1
        if mark["judged"] is not None and mark["metrics"]:
            judged = {**mark["judged"], "time_ms": int(ended_s * 1000)}
            judge(self.server, self.models[0], judged, mark["metrics"], has_met_gates=status == "FINISHED")
        for run in runs.values():
            self.client.log_batch(run, tags=_run_tags(mark["last_tags"]))
            self.client.set_terminated(run, status, int(ended_s * 1000))

    def _log_file(self, path: Path) -> None:
        """A figure goes to its model's run, anything else to the stage's."""
        named = [model for model in self.models if len(self.models) == 1 or path.name.startswith(f"{model}-")]
        run = self.state["runs"][named[0] if named else OWN]
        self.client.log_artifact(run, str(path), "figures" if path.suffix == ".png" else None)
        self.shipped.files += 1


def _nothing_shipped() -> dict[str, Any]:
    return {"runs": {}, "begun": 0, "ended": None, "bytes": {}, "step": 0, "time_s": 0.0, "starts": ""}


def end_of(mark: Mapping[str, Any]) -> list[Any]:
    """Names an end: one that was only guessed (of a process on another machine) is followed by the one it tells."""
    return [mark["attempt"], mark["status"]]


def _known_to_mlflow(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags, with those that MLflow's pages have columns for under the names these are known by."""
    known = {"command": "mlflow.source.name", "branch": "mlflow.source.git.branch", "user": "mlflow.user"}
    renamed = {known.get(key, key): value for key, value in tags.items()}
    return {**renamed, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": tags["commit"]}


def _run_tags(tags: Mapping[str, str]) -> "list[RunTag]":
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _metric(key: str, value: float, time_s: float, step: int) -> "Metric":
    from mlflow.entities import Metric

    return Metric(allowed_key(key), float(value), int(time_s * 1000), int(step))
