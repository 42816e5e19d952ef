"""Stages whose work divides: numbered parts, made by any number of workers in any order, then gathered by one job.

Such a stage defines `PHASES` beside `run`. Params and inputs fix the parts, never the workers; each part that is made
leaves a mark, so that a second start makes only what is missing. `run` finds them all made.
"""

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dinov2.progress import logged

log = logging.getLogger(__name__)
MADE = "made"  # below work: an empty file says that a part is
POLL_S = 0.2


class Phase(NamedTuple):
    """One kind of part. Both functions take what `run` takes, by name, and name only what they need."""

    name: str
    count: Callable[..., int]
    """Number of parts; light, as the submitting process asks too."""
    do: Callable[..., None]
    """Makes part `part`: writes it below `work` by renaming, and may be called again after a kill."""


class Share(NamedTuple):
    """A worker's parts of a phase."""

    phase: str
    parts: tuple[int, ...]


def phases(module: ModuleType) -> tuple[Phase, ...]:
    """The phases of a stage's module, in order; none if its work does not divide."""
    return getattr(module, "PHASES", ())


def named(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that `function` has parameters for."""
    asked = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in asked}


def missing_parts(phase: Phase, values: dict[str, Any]) -> list[int]:
    """Parts that are not made yet. `values` holds what `run` takes, `work` among it."""
    num_parts = phase.count(**named(phase.count, values))
    return [part for part in range(num_parts) if not _mark(phase, part, values).exists()]


def make_parts(
    phase: Phase, values: dict[str, Any], *, first: int, of: int, among: Sequence[int] | None = None
) -> None:
    """Make every `of`-th part from `first` on that is missing, in order: of all parts, or of those numbered `among`."""
    asked = among if among is not None else range(phase.count(**named(phase.count, values)))
    mine = [part for part in asked[first::of] if not _mark(phase, part, values).exists()]
    for part in logged(mine, total=len(mine), what=f"{phase.name}: parts", logger=log):
        phase.do(part=part, **named(phase.do, values))
        mark = _mark(phase, part, values)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def wait_for_parts(phase: Phase, values: dict[str, Any]) -> None:
    """Return when all parts are made, by this process or others of its job."""
    missing = missing_parts(phase, values)
    while missing := [part for part in missing if not _mark(phase, part, values).exists()]:
        time.sleep(POLL_S)


def _mark(phase: Phase, part: int, values: dict[str, Any]) -> Path:
    return values["work"] / MADE / phase.name / f"{part:06d}"
