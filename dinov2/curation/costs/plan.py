"""A plan of a stage of the curation, said before it runs: operations, bytes, memory, parts and hours.

A phase takes as long as what it needs most: cores, GPUs, storage or network, each of which works beside the others. A
phase of one part has one process's cores and GPU and one node's storage, and what is not written for several cores has
one; the phases of a stage follow each other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dinov2.curation.costs.rates import Rates, read_rates
from dinov2.curation.costs.sizes import Assumed, Machines, Sizes, read_sizes
from dinov2.curation.costs.stages import STAGES, Work
from dinov2.gpus import GPUS

MAX_WORKERS = 64  # elements of a job array
LATER = ("embed", "dedup", "retrieve")


class Cost(NamedTuple):
    """A phase and how long it takes."""

    stage: str
    work: Work
    processes: int
    hours: float
    bound_by: str


def costs_of(stage: str, sizes: Sizes, rates: Rates, machines: Machines) -> list[Cost]:
    """Of each phase of a stage."""
    return [_cost(stage, work, rates, machines) for work in STAGES[stage](sizes, rates)]


def _cost(stage: str, work: Work, rates: Rates, machines: Machines) -> Cost:
    processes = min(machines.processes, work.parts)
    nodes, share = min(machines.nodes, processes), processes / machines.processes
    cores, gpus = machines.nodes * machines.cores * share, machines.nodes * machines.gpus * share
    on_gpu = work.on_gpu and gpus > 0
    seconds = {
        "cores": (work.core_s + (0 if on_gpu else work.flops / (work.core_flops or rates.core_flops))) / cores,
        "one core": work.lone_s,
        "GPUs": work.flops / (gpus * rates.gpu_flops) if on_gpu else 0.0,
        "storage": (work.read + work.written) / (nodes * rates.storage),
        "network": work.fetched / (nodes * rates.network),
    }
    longest = max(seconds, key=lambda name: seconds[name])
    return Cost(stage, work, processes, seconds[longest] / 3600, longest)


def plan_stage(stage: str, file: Path, assumed: Assumed, machines: Machines) -> Iterator[str]:
    """The lines that `--plan` prints. Raises InputError for numbers that no plan can be made of."""
    machines = asked(machines, assumed)
    sizes = read_sizes(file, assumed)
    rates = read_rates(assumed)
    a = assumed
    yield f"{stage}: what follows is counted by formulas, unless it says measured or assumed"
    yield f"{'images':<15}{a.images:,.0f}, of an assumed {a.image_kb:g} kB and {a.megapixels:g} megapixels"
    yield (
        f"{'machines':<15}{_many(machines.nodes, 'node')} of {machines.cores} cores and {_gpus(machines, a)}; "
        f"{_jobs(machines)} share the parts"
    )
    costs = costs_of(stage, sizes, rates, machines)
    for cost in costs:
        work = cost.work
        yield f"{work.phase:<15}{_amounts(work)}"
        parts = f"{_many(work.parts, 'part')} over {_many(cost.processes, 'process')}"
        yield f"{'':<15}{parts}, {_time(cost.hours)}, bound by {cost.bound_by}"
    yield f"{'in all':<15}{_time(sum(cost.hours for cost in costs))}"
    for number, line in enumerate(_sources(costs, rates, machines)):
        yield f"{'' if number else 'rates':<15}{line}"


def asked(machines: Machines, assumed: Assumed) -> Machines:
    """The machines of launch, but for what the options say otherwise."""
    nodes = assumed.nodes or machines.nodes
    return Machines(
        nodes=nodes,
        cores=assumed.cores or machines.cores,
        gpus=machines.gpus if assumed.gpus is None else assumed.gpus,
        workers=min(nodes, MAX_WORKERS) if assumed.nodes else machines.workers,
    )


def markdown(file: Path, assumed: Assumed, machines: Machines) -> str:
    """The plans of all stages as one table, with the rates below."""
    machines = asked(machines, assumed)
    sizes, rates = read_sizes(file, assumed), read_rates(assumed)
    costs = [cost for stage in STAGES for cost in costs_of(stage, sizes, rates, machines)]
    lines = [
        f"{assumed.images:.3g} images; {machines.nodes} nodes of {machines.cores} cores and "
        f"{_gpus(machines, assumed)}; {_jobs(machines)}",
        "",
        "| stage | phase | FLOP | read, fetched | written | memory a process | parts | processes | time | bound by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for cost in costs:
        work = cost.work
        cells = (
            cost.stage, work.phase, f"{work.flops:.2g}" if work.flops else "-", size(work.read + work.fetched),
            size(work.written), size(work.memory), f"{work.parts:,}", f"{cost.processes}", _time(cost.hours),
            cost.bound_by,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    total, joined = (sum(cost.hours for cost in costs if cost.stage in stages) for stages in (STAGES, LATER))
    lines += [
        "",
        f"In all {total:.3g} h one after the other, of which {joined:.3g} h from {LATER[0]} on.",
        "",
        *(f"- {line}" for line in _sources(costs, rates, machines)),
    ]
    return "\n".join(lines) + "\n"


def size(num_bytes: float | int) -> str:
    """Bytes in the unit of powers of 1,000 that suits."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB" if num_bytes else "-"


def _many(num: int, what: str) -> str:
    """`1 part`, `1,234 parts`."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{num:,} {what if num == 1 else plural}"


def _jobs(machines: Machines) -> str:
    return f"{_many(machines.processes, 'process')} of {_many(machines.workers, 'job')}"


def _gpus(machines: Machines, assumed: Assumed) -> str:
    if not machines.gpus:
        return "no GPU"
    return f"{machines.gpus} {GPUS[assumed.gpu].name}"


def _amounts(work: Work) -> str:
    parts = [f"{work.flops:.2g} FLOP"] if work.flops else []
    parts += [f"{work.core_s / 3600:,.3g} core-hours by measured rates"] if work.core_s else []
    parts += [f"{work.lone_s / 3600:,.3g} hours of one core by measured rates"] if work.lone_s else []
    parts += [f"{size(work.fetched)} fetched"] if work.fetched else []
    parts += [f"{size(work.read)} read"]
    parts += [f"{size(work.written)} written"] if work.written else []
    parts += [f"{size(work.memory)} of memory a process"] if work.memory else []
    return ", ".join(parts)


def _time(hours: float | int) -> str:
    """In the unit that suits."""
    seconds = 3600 * hours
    return f"{seconds:.2g} s" if seconds < 60 else f"{seconds / 60:.2g} min" if hours < 1 else f"{hours:,.3g} h"


def _sources(costs: list[Cost], rates: Rates, machines: Machines) -> list[str]:
    """Of the rates that these costs were reckoned with."""
    used = {"storage"} | {cost.stage for cost in costs if cost.work.core_s}
    used |= {"gathering"} if any(cost.work.lone_s for cost in costs) else set()
    used |= {"network"} if any(cost.work.fetched for cost in costs) else set()
    for cost in costs:
        if cost.work.flops:
            used.add("GPUs" if machines.gpus else cost.stage if cost.work.core_flops else "cores")
    return [line for name, line in rates.sources.items() if name in used]
