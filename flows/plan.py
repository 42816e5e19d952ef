"""`python -m flows.full_pipeline --plan`: what the whole run will hold and take, stage by stage and in sum.

By the arithmetic of each stage's own `--plan`, with the machines that section launch gives. Reads no inputs and runs
nothing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dinov2.command import add_options, from_options, show
from dinov2.curation.costs.plan import size
from dinov2.curation.costs.sizes import Assumed
from dinov2.gpus import GPUS
from dinov2.params import InputError, load_section
from dinov2.train.plan import RESERVE_GIB, Assumptions
from tasks.needs import Need, needs
from tasks.resources import LaunchParams

OF_LAUNCH = ("nodes", "cores", "gpus", "processes")  # options of a stage's plan that launch decides here
PARAMS_FILE = Path("params.yaml")


def print_plan(stages: Sequence[str], arguments: list[str]) -> int:
    """Print the plan of `stages`, in order; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m flows.full_pipeline", description=f"{__doc__}\n{Assumed.__doc__}\n{Assumptions.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", required=True)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, metavar="FILE", help="in place of %(default)s")
    add_options(parser, Assumed, but=OF_LAUNCH)
    add_options(parser, Assumptions, but=OF_LAUNCH)
    options = vars(parser.parse_args(arguments))
    curation, training = from_options(Assumed, options), from_options(Assumptions, options)
    try:
        launch = load_section(options["params"], "launch", LaunchParams)
        show(_lines(needs(list(stages), options["params"], curation, training), launch, curation, training))
    except InputError as error:
        sys.stderr.write(f"full-pipeline: {error}\n")
        return 2
    return 0


def _lines(found: list[Need], launch: LaunchParams, curation: Assumed, training: Assumptions) -> Iterator[str]:
    gpu = GPUS[curation.gpu].name
    yield f"the whole run on {launch.cluster}, by section launch; every stage of the curation sees all images"
    yield (
        f"{curation.images:,.0f} images of an assumed {curation.image_kb:g} kB, {curation.seeds:,.0f} seeds, "
        f"{curation.evaluation:,.0f} for evaluation"
    )
    yield ""
    yield (
        f"{'stage':<10}{'jobs':>6}  {'each of':<32}{'time':>9}{'GPU-hours':>11}{'core-hours':>12}"
        f"{'written':>10}  memory"
    )
    for need in found:
        yield (
            f"{need.stage:<10}{_count(need.jobs):>6}  {_machine(need):<32}{_hours(need.hours):>9}"
            f"{_total(need.gpu_hours):>11}{_total(need.core_hours):>12}{_size(need.written_bytes):>10}"
            f"  {_memory(need)}"
        )
        for note in need.notes:
            yield f"{'':<18}{note}"
    yield from _sums(found)
    yield ""
    yield "memory is that of a process, on its GPU where it says so; written is what goes to disk and store"
    yield f"trainings: at an assumed MFU of {training.mfu:g} on {gpu}, with {RESERVE_GIB:g} GiB for CUDA and NCCL"
    yield "rates of the curation, measured or assumed: python -m tasks.<stage> --plan tells each"


def _sums(found: list[Need]) -> Iterator[str]:
    """Of what is counted, and what is not in it."""
    hours, gpu_hours, core_hours, written = (
        sum(value for value in values if value is not None)
        for values in zip(*((n.hours, n.gpu_hours, n.core_hours, n.written_bytes) for n in found), strict=True)
    )
    jobs = sum(need.jobs or 0 for need in found)
    largest = max((need.written_bytes or 0 for need in found), default=0)
    yield (
        f"{'in all':<10}{jobs:>6,}  {'one stage after the other':<32}{_hours(hours):>9}{_total(gpu_hours):>11}"
        f"{_total(core_hours):>12}{_size(written):>10}"
    )
    timeless = [need.stage for need in found if need.hours is None]
    if timeless:
        yield f"{'':<18}without the time of {', '.join(timeless)}"
    unwritten = [need.stage for need in found if need.written_bytes is None]
    if unwritten:
        yield f"{'':<18}and what {', '.join(unwritten)} write; the most of one stage: {_size(largest)}"


def _machine(need: Need) -> str:
    given = need.resources
    nodes = "" if given.nodes == 1 else f"{given.nodes} nodes, each "
    cores = given.cpus_per_task * given.tasks_per_node
    gpus = "" if given.gpus_per_node == 0 else f", {given.gpus_per_node} GPU{'s' if given.gpus_per_node > 1 else ''}"
    return f"{nodes}{cores} core{'s' if cores > 1 else ''}{gpus}"


def _memory(need: Need) -> str:
    if need.memory_bytes is None:
        return "?"
    return _size(need.memory_bytes) + (" GPU" if need.memory_on_gpu else "")


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _hours(hours: float | None) -> str:
    """In the unit that suits."""
    if hours is None:
        return "?"
    seconds = 3600 * hours
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _total(hours: float | None) -> str:
    return "?" if hours is None else "-" if hours == 0 else f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}"


def _size(num_bytes: float | None) -> str:
    return "?" if num_bytes is None else size(num_bytes)
