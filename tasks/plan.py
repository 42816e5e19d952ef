"""`python -m tasks.<stage> --plan`: what the stage would do and need. Reads no inputs, submits nothing.

A stage has a plan if its module has a function `plan` that gives lines. It is supplied with what its arguments name:
`params` (its section), `params_file`, `launched` (nodes, GPUs and time that launch gives it), and `assumed`, a
NamedTuple of what the plan takes for granted, each field of which is an option with the field's default. The stages of
the curation have theirs from dinov2/curation/costs/, which needs none of their code.
"""

import argparse
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinov2.curation.costs.plan import plan_stage
from dinov2.curation.costs.sizes import Assumed, Machines
from dinov2.curation.costs.stages import STAGES
from dinov2.params import InputError, load_section
from dinov2.train.plan import Launched
from tasks.resources import LaunchParams, Resources


def print_plan(stage: str, module: Any, params_file: Path) -> int:
    """Print the plan of `stage`, whose task file is `module`; returns the exit code."""
    make = getattr(module, "plan", None) or _of_curation(stage, module)
    if make is None:
        sys.stderr.write(f"{stage}: this stage has no plan; run it without --plan\n")
        return 2
    try:
        options = _parse(stage, make, params_file)
        for line in _lines(stage, make, options):
            print(line, flush=True)
    except InputError as error:
        sys.stderr.write(f"{stage}: {error}\n")
        return 2
    return 0


def _of_curation(stage: str, module: Any) -> Callable[..., Iterator[str]] | None:
    """The plan of a stage of the curation; None for others."""
    if stage not in STAGES:
        return None

    def plan(params_file: Path, resources: Resources, assumed: Assumed) -> Iterator[str]:
        load_section(params_file, stage, typing.get_type_hints(module.run)["params"])
        machines = Machines(
            nodes=resources.nodes * resources.workers,
            cores=resources.cpus_per_task * resources.tasks_per_node,
            gpus=resources.gpus_per_node,
            workers=resources.workers,
        )
        return plan_stage(stage, params_file, assumed, machines)

    return plan


def _parse(stage: str, make: Callable[..., Iterator[str]], params_file: Path) -> dict[str, Any]:
    assumed = typing.get_type_hints(make)["assumed"]
    parser = argparse.ArgumentParser(
        f"python -m tasks.{stage}", description=assumed.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", required=True)
    parser.add_argument("--params", type=Path, default=params_file, metavar="FILE", help="in place of %(default)s")
    for name, kind in typing.get_type_hints(assumed).items():
        (plain,) = set(typing.get_args(kind) or (kind,)) - {type(None)}
        parser.add_argument(f"--{name}", type=plain, default=assumed._field_defaults[name], help="default: %(default)s")
    return vars(parser.parse_args())


def _lines(stage: str, make: Callable[..., Iterator[str]], options: dict[str, Any]) -> Iterator[str]:
    file = options["params"]
    hints = typing.get_type_hints(make)
    given = load_section(file, "launch", LaunchParams).resources(stage)
    supplied = {
        "params": load_section(file, stage, hints["params"]) if "params" in hints else None,
        "params_file": file,
        "resources": given,
        "launched": Launched(given.nodes, given.gpus_per_node, given.timeout_min),
        "assumed": hints["assumed"](**{name: options[name] for name in hints["assumed"]._fields}),
    }
    return make(**{name: supplied[name] for name in inspect.signature(make).parameters})
