"""`python -m tasks.<stage> --plan`: what the stage would do and need. Reads no inputs, submits nothing.

A stage that trains has a plan if its module has a function `networks_of` that says which networks (or None where it
trains none); the stages of the curation have theirs from dinov2/curation/costs/, which needs none of their code. What a
plan takes for granted is a NamedTuple, each field of which is an option. That of all stages: flows/plan.py.
"""

import argparse
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2.command import add_options, from_options, show
from dinov2.curation.costs.plan import plan_stage
from dinov2.curation.costs.sizes import Assumed, Machines
from dinov2.curation.costs.stages import STAGES
from dinov2.params import InputError, load_section
from dinov2.train.plan import Assumptions, Launched, plan_training
from tasks.launch import sbatch_header
from tasks.resources import LaunchParams, Resources


def print_plan(stage: str, module: Any, params_file: Path) -> int:
    """Print the plan of `stage`, whose task file is `module`; returns the exit code."""
    trains = hasattr(module, "networks_of")
    if not trains and stage not in STAGES:
        sys.stderr.write(f"{stage}: this stage has no plan; run it without --plan\n")
        return 2
    options = _parse(stage, Assumptions if trains else Assumed, params_file)
    file = options["params"]
    try:
        if trains:
            show(_training(stage, module, file, from_options(Assumptions, options)))
        else:
            show(_curation(stage, module, file, from_options(Assumed, options)))
        show(_script(stage, load_section(file, "launch", LaunchParams)))
    except InputError as error:
        sys.stderr.write(f"{stage}: {error}\n")
        return 2
    return 0


def _script(stage: str, launch: LaunchParams) -> Iterator[str]:
    """What sbatch would be given, if stages are SLURM jobs."""
    if launch.cluster == "slurm":
        yield "the job:"
        yield from (f"  {line}" for line in sbatch_header(stage, launch) if line.startswith("#SBATCH"))


def _parse(stage: str, kind: type[Assumed] | type[Assumptions], params_file: Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        f"python -m tasks.{stage}", description=kind.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", required=True)
    parser.add_argument("--params", type=Path, default=params_file, metavar="FILE", help="in place of %(default)s")
    add_options(parser, kind)
    return vars(parser.parse_args())


def _training(stage: str, module: Any, params_file: Path, assumed: Assumptions) -> Iterator[str]:
    params = stage_params(params_file, stage, module)
    networks = module.networks_of(params, params_file=params_file)
    if networks is None:
        yield f"{stage}: takes a given backbone as it is; nothing is trained"
        return
    launch = load_section(params_file, "launch", LaunchParams)
    yield from plan_training(stage, params, networks, launched(launch.resources(stage)), assumed)


def _curation(stage: str, module: Any, params_file: Path, assumed: Assumed) -> Iterator[str]:
    stage_params(params_file, stage, module)
    launch = load_section(params_file, "launch", LaunchParams)
    return plan_stage(stage, params_file, assumed, machines_of(launch, stage))


def stage_params(params_file: Path, stage: str, module: Any) -> Any:
    """The stage's section, validated."""
    return load_section(params_file, stage, typing.get_type_hints(module.run)["params"])


def launched(resources: Resources) -> Launched:
    """What launch gives a training."""
    return Launched(resources.nodes, resources.gpus_per_node, resources.timeout_min)


def machines_of(launch: LaunchParams, stage: str) -> Machines:
    """What works side by side for a stage of the curation; on SLURM not all of its workers may."""
    resources = launch.resources(stage)
    workers = min(resources.workers, resources.max_running) if launch.cluster == "slurm" else resources.workers
    return Machines(
        nodes=resources.nodes * workers,
        cores=resources.cpus_per_task * resources.tasks_per_node,
        gpus=resources.gpus_per_node,
        workers=workers,
    )
