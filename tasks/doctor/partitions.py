"""Whether SLURM's partitions can give what stages ask for, by what sinfo says."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from tasks.resources import Resources

SINFO = ["sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%m|%G|%l"]  # exact: of each node, not of the least


class Nodes(NamedTuple):
    """Equal nodes of a partition."""

    num: int
    cores: int
    memory_mb: int
    """As SLURM counts: 1,024 of them are the GB that a job asks for."""
    gpus: int
    limit_min: float


Partitions = dict[str | None, list[Nodes]]
"""By name; None: the cluster's default."""


def read_partitions(said: str) -> Partitions:
    """What `SINFO` printed."""
    found: Partitions = {}
    for line in said.splitlines():
        name, num, cores, memory, gres, limit = line.split("|")
        nodes = Nodes(_number(num), _number(cores), _number(memory), _num_gpus(gres), _minutes(limit))
        for key in (name.rstrip("*"), None) if name.endswith("*") else (name,):
            found.setdefault(key, []).append(nodes)
    return found


def shortcomings(name: str, asked: Resources, partitions: Partitions) -> Iterator[str]:
    """Why no node can run a job of stage `name`, in sentences; none where SLURM alone chooses the partition."""
    choices = [None] if asked.partition is None else asked.partition.split(",")  # sbatch takes several, any will do
    for choice in choices:
        if choice is not None and choice not in partitions:
            known = ", ".join(names(partitions))
            yield f"{name} asks for partition '{choice}', which does not exist; there are {known}"
            return
    kinds = [nodes for choice in choices for nodes in partitions.get(choice, [])]
    if not kinds:
        return
    where = "the default partition" if asked.partition is None else f"partition '{asked.partition}'"
    gpus, cores = asked.gpus_per_node, asked.cpus_per_task * asked.tasks_per_node
    most = max(nodes.gpus for nodes in kinds)
    able = [
        nodes.num
        for nodes in kinds
        if nodes.gpus >= gpus and nodes.cores >= cores and nodes.memory_mb >= 1024 * asked.memory_gb
    ]
    if gpus > most:
        has = f"has more than {most}" if most else "has one"
        yield f"{name} asks for GPUs, {gpus} a node, and no node of {where} {has}; ask for less, or of another"
    elif not able:
        of = f"{cores} cores and {asked.memory_gb} GB" + (f" with {gpus} GPUs" if gpus else "")
        yield f"{name} asks for nodes of {of}, which {where} has none of; ask for less, or of another"
    elif sum(able) < asked.nodes:
        yield f"{name} asks for {asked.nodes} nodes, and {where} has {sum(able)} that can run it; ask for less"
    longest = max(nodes.limit_min for nodes in kinds)
    if longest < asked.timeout_min:
        yield f"{name} asks for {asked.timeout_min} min, and {where} gives {longest:.0f}; lower its timeout_min"


def names(partitions: Partitions) -> list[str]:
    """Of all partitions."""
    return sorted(name for name in partitions if name is not None)


def _minutes(limit: str) -> float:
    """Of SLURM's `days-hours:minutes:seconds`, in which all but minutes and seconds may be missing; or `infinite`."""
    if not limit[:1].isdigit():
        return float("inf")
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60


def _num_gpus(gres: str) -> int:
    """Of `gpu:a100:8(S:0,2-3),gpu:2,mps:400`, 10; of `(null)`, 0."""
    kinds = [kind.split(":") for kind in re.sub(r"\([^)]*\)", "", gres).split(",")]
    return sum(_number(kind[-1]) for kind in kinds if kind[0] == "gpu")


def _number(text: str) -> int:
    """`16+` is 16 or more."""
    return int(text.rstrip("+")) if text[:1].isdigit() else 0
