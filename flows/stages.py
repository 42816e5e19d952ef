"""The stages: their names, which of them a flow has, and what each one needs, read from dvc.yaml, the only DAG.

Imports no Prefect, so that whoever wants to know the stages need not wait for it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dinov2.params import InputError, read_yaml

CurationStage = Literal["crawl", "download", "filter", "bootstrap", "embed", "dedup", "retrieve"]
TrainingStage = Literal["pretrain", "highres", "distill"]
EvaluationStage = Literal["evaluate", "report"]
Stage = Literal[CurationStage, TrainingStage, EvaluationStage]

CURATION: tuple[str, ...] = get_args(CurationStage)
TRAINING: tuple[str, ...] = get_args(TrainingStage)
EVALUATION: tuple[str, ...] = get_args(EvaluationStage)
STAGES: tuple[str, ...] = get_args(Stage)
"""In an order in which they can run."""

FLOWS: dict[str, tuple[str, ...]] = {
    "full-pipeline": STAGES,
    "curation": CURATION,
    "training": TRAINING,
    "evaluation": EVALUATION,
}

Needs = dict[str, frozenset[str]]
"""What is to be run, in order, and what must have ended before: `{"dedup": {"filter", "embed"}, ...}`."""


def choose(stages: Sequence[str], start_at: str, stop_at: str, force: Sequence[str]) -> tuple[str, ...]:
    """The stages from `start_at` to `stop_at`. Raises InputError where they or `force` name what is not among them."""
    for option, names in (("start_at", [start_at]), ("stop_at", [stop_at]), ("force", force)):
        for name in names:
            if name not in stages:
                raise InputError(f"{option} names '{name}', which is no stage of this flow; it has {_listed(stages)}")
    first, last = stages.index(start_at), stages.index(stop_at)
    if first > last:
        raise InputError(f"start_at={start_at} comes after stop_at={stop_at}; the order is {_listed(stages)}")
    chosen = tuple(stages[first : last + 1])
    for name in force:
        if name not in chosen:
            raise InputError(f"force names '{name}', which this run leaves out; it has {_listed(chosen)}")
    return chosen


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def with_order(schema: dict[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """A flow's JSON schema, so extended that Prefect refuses what `choose` refuses before it creates a run."""
    rules = []
    for place, stage in enumerate(stages):
        later, earlier = list(stages[place:]), list(stages[: place + 1])
        rules.append(_rule("start_at", stage, {"stop_at": {"enum": later}, "force": {"items": {"enum": later}}}))
        rules.append(_rule("stop_at", stage, {"force": {"items": {"enum": earlier}}}))
    return {**schema, "allOf": rules}


def _rule(option: str, value: str, then: dict[str, Any]) -> dict[str, Any]:
    condition = {"properties": {option: {"const": value}}, "required": [option]}
    return {"if": condition, "then": {"properties": then}}


def read_needs(chosen: Sequence[str], *, split: bool) -> Needs:
    """What each of `chosen` needs of the others; with `split`, each member of a stage of many by itself (`evaluate@x`).

    Read from dvc.yaml and params.yaml in the working directory; raises InputError where they can't be.
    """
    entries: dict[str, Any] = read_yaml(Path("dvc.yaml"))["stages"]  # pyright: ignore[reportAssignmentType]
    values = read_yaml(Path("params.yaml"))
    members = {stage: _members(stage, entries[stage], values) for stage in chosen}
    needs: Needs = {}
    for stage in chosen:
        above = {name: _made_by(body, chosen) for name, body in members[stage].items()}
        if not split:
            above = {stage: set().union(*above.values())}
        for name, stages in above.items():
            needs[name] = frozenset(member for other in stages for member in (members[other] if split else [other]))
    return needs


def _members(stage: str, entry: dict[str, Any], values: dict[str, object]) -> dict[str, list[str]]:
    """Names of the stage, or of the members of a stage of many, with the dependencies of each."""
    if "foreach" not in entry:
        return {stage: entry["deps"]}
    section = re.sub(r"[${}]", "", entry["foreach"])
    items = values.get(section)
    if not isinstance(items, dict):
        raise InputError(f"params.yaml: {section} is {items!r}, not names with places; mend it, as in presets/")
    deps: list[str] = entry["do"]["deps"]
    return {f"{stage}@{key}": [dep.replace("${item}", str(item)) for dep in deps] for key, item in items.items()}


def _made_by(deps: Sequence[str], chosen: Sequence[str]) -> set[str]:
    """The stages among `chosen` that make these dependencies: `data/<stage>` and what is below."""
    return {part[1] for dep in deps if (part := dep.split("/"))[0] == "data" and part[1] in chosen}
