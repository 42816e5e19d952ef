"""What params say: keys and ranges, inputs, pretrained files, and arithmetic."""

import importlib.metadata
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from dinov2.curation.costs.sizes import Assumed
from dinov2.curation.model_file import PACKAGE, find_model
from dinov2.params import InputError, flatten, load_section, read_yaml
from dinov2.store import StoreParams
from dinov2.train.params import RecipeParams
from dinov2.train.plan import Assumptions
from tasks.doctor.finding import Finding, ok, problem, warning
from tasks.needs import needs
from tasks.plan import stage_params
from tasks.resources import LaunchParams
from tasks.server import TrackingParams


def stages() -> list[str]:
    """All stages, in the order of dvc.yaml."""
    entries = read_yaml(Path("dvc.yaml")).get("stages")
    if not isinstance(entries, dict):
        raise InputError("dvc.yaml has no stages; restore it from git")
    return [str(name) for name in entries]


def check_params(file: Path) -> Iterator[Finding]:
    """Every section has the right keys, types and ranges."""
    names = stages()
    for stage in names:
        stage_params(file, stage, import_module(f"tasks.{stage}"))
    load_section(file, "store", StoreParams)
    launch = load_section(file, "launch", LaunchParams)
    for name in sorted(set(launch.stages) - set(names)):
        yield warning(f"params: launch.stages.{name} is of no stage; there are {', '.join(names)}")
    load_section(file, "tracking", TrackingParams).absolute_uri()
    yield ok(f"params: {len(names)} stages, store, launch and tracking are as they should be")


def check_inputs(file: Path) -> Iterator[Finding]:
    """What the first stages read is there."""
    given = flatten(read_yaml(file).get("inputs"))
    if not isinstance(given.get("crawl"), str):
        raise InputError(f"{file} does not say where inputs.crawl is; add it, as in presets/")
    for name, value in given.items():
        folder = Path(str(value))
        if not folder.exists():
            yield problem(f"inputs: {name}: {folder} does not exist; put it there, or mend inputs.{name}")
        elif folder.is_dir() and not any(folder.iterdir()):
            yield problem(f"inputs: {name}: {folder} is empty; fill it, or mend inputs.{name}")
        else:
            yield ok(f"inputs: {name}: {folder}")


def check_models(file: Path) -> Iterator[Finding]:
    """Files that params name are there and, where they are pinned, the right ones; what licence they come under."""
    values = read_yaml(file)
    for where, path, digest in _named({stage: values.get(stage) for stage in stages()}):
        try:
            if digest is not None:
                find_model(path, digest, where=where)
        except InputError as error:
            yield problem(f"file: {error}")
            continue
        if digest is not None:
            yield ok(f"file: {where}: {path}; licence: {_licence(path)}")
        elif Path(path).exists():
            yield ok(f"file: {where}: {path}")
        else:
            yield problem(f"file: {where}: {path} does not exist; put it there, or mend {where}")


def _named(values: object, where: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Where params name a file or folder, its path, and its sha256 if it is pinned."""
    within: Any = values if isinstance(values, dict) else dict(enumerate(values)) if isinstance(values, list) else {}
    for key, value in within.items():
        inside = f"{where}.{key}" if where else str(key)
        if key == "path" and isinstance(value, str):
            yield where, value, within.get("sha256")
        elif key == "backbone" and isinstance(value, str):
            yield inside, value, None
        yield from _named(value, inside)


def _licence(path: str) -> str:
    if not path.startswith(PACKAGE):
        return "as where you have it from"
    about = importlib.metadata.metadata(path.removeprefix(PACKAGE).partition("/")[0])
    said = [about[key].splitlines()[0] for key in ("License-Expression", "License") if key in about]
    return said[0] if said else "not said by its package"


def check_plan(file: Path) -> Iterator[Finding]:
    """The arithmetic of all stages: batches that divide, schedules that fit, memory and time limits."""
    found = needs(stages(), file, Assumed(), Assumptions())
    notes = [(need.stage, note) for need in found for note in need.notes]
    for stage, note in notes:
        if re.search(r"^needs |^a job takes|short on|^saves every", note):
            yield warning(f"plan: {stage}: {note}; see python -m flows.full_pipeline --plan")
    yield ok(f"plan: batches, schedules and networks of {len(found)} stages fit together")


def check_schedules(file: Path) -> Iterator[Finding]:
    """No warm-up or freeze outlasts its training."""
    for stage in stages():
        params = stage_params(file, stage, import_module(f"tasks.{stage}"))
        if not isinstance(params, RecipeParams):
            continue
        for name, value in params.schedule.model_dump().items():
            if name.endswith("_steps") and value >= params.num_steps:
                yield warning(
                    f"schedule: {stage}: {name} is {value}, and training ends after {params.num_steps} steps; "
                    f"lower {stage}.schedule.{name}, or raise {stage}.num_steps"
                )
