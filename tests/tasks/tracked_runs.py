"""Stages that were tracked, made without running any: their work folders as tasks/tracked.py leaves them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dinov2.params import Params
from dinov2.records import write_json
from tasks.call import StageCall
from tasks.server import Server, TrackingParams, connect
from tasks.tracked import MARK, Tracked


class Recipe(Params):
    """A stage's section."""

    seed: int
    model: dict[str, int]


def tracking(uri: str) -> TrackingParams:
    """Params of a server that is asked often."""
    return TrackingParams(uri=uri, experiment="tests", ship_every_s=0.05, idle_s=1.0)


def stage(name: str, *, model: str | None = None, models: list[str] | None = None, seed: int = 1) -> Tracked:
    """A stage in the current folder: of one call a `model`, or one that trains `models`."""
    inputs = {"retrieve": "0123456789abcdef" * 4} | ({"backbone": "f" * 64} if model else {})
    paths = {"retrieve": "data/retrieve"} | ({"backbone": "data/backbone"} if model else {})
    names = {"model": model} if model else {}
    call = StageCall(name, paths, names, f"data/{name}", Recipe(seed=seed, model={"dim": 8}), 1, inputs)
    call.work.mkdir(parents=True, exist_ok=True)
    trained = {each: {"model": {"dim": 8}} for each in models or []}
    module: Any = SimpleNamespace(models=lambda params: trained) if trained else SimpleNamespace()
    return Tracked(call, module, warn=print)


def finish(tracked: Tracked, metrics: dict[str, float], out: Path, status: str = "FINISHED") -> None:
    """Begin and end it."""
    with tracked:
        tracked.finish(status, out, metrics, "" if status == "FINISHED" else "gate missed")


def edit_mark(tracked: Tracked, **values: Any) -> None:
    """Change what the work folder tells."""
    path = tracked.work / MARK
    write_json(path, json.loads(path.read_text()) | values)


def add_rows(work: Path, steps: range, **extra: float) -> None:
    """Curves."""
    with (work / "metrics.jsonl").open("a") as stream:
        for n in steps:
            stream.write(json.dumps({"step": n, "time": 1000.0 + n, "total": 10.0 - n, **extra}) + "\n")


def runs_of(given: TrackingParams) -> tuple[Server, dict[tuple[str, str], Any]]:
    """All runs by kind and name; there must be one of each."""
    server = connect(given)
    found = server.client.search_runs([server.experiment_id])
    runs = {(run.data.tags["kind"], run.info.run_name or ""): run for run in found}
    assert len(runs) == len(found), sorted(runs)
    return server, runs
