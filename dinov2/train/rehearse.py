"""The sharding of a training, rehearsed without its machines: networks on the meta device, processes pretended.

torch's fake process group answers every collective at once without moving data, so that one process can take any rank
of any number of them; parameters on the meta device have shapes and no memory. The sharding is that of training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from dinov2.train.memory import Holdings
from dinov2.train.objective import backbone_of, build_network, local_part
from dinov2.train.parallelize import DTYPES, process_mesh, shard_network
from dinov2.train.params import Architecture, EfficiencyParams


@contextmanager
def pretended_process(rank: int, num_processes: int) -> Iterator[None]:
    """Within the body this process is `rank` of `num_processes`, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend, too

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_sharded(
    architecture: Architecture, efficiency: EfficiencyParams, *, rank: int, num_processes: int
) -> nn.ModuleDict:
    """A network (backbone and heads) as `rank` of `num_processes` holds it, on the meta device.

    With several processes its parameters are DTensors, whose local parts are of use after this, too. Raises InputError
    as training would if `shard_processes` does not divide the processes.
    """
    with torch.device("meta"):
        network = build_network(architecture.model, architecture.dino_head, architecture.ibot_head)
    if num_processes > 1:
        with pretended_process(rank, num_processes):
            mesh = process_mesh(efficiency.shard_processes, torch.device("cpu"))  # of its own kind: meta has no mesh
            shard_network(network, mesh, DTYPES[efficiency.precision])
    return network


def rehearse_holdings(
    architecture: Architecture, efficiency: EfficiencyParams, *, rank: int, num_processes: int
) -> Holdings:
    """What `rank` of `num_processes` holds of a network.

    Every parameter is cut along its first dimension into parts of ceil(length / shards) rows, as far as they last: rank
    0 holds the most, the last rank the least.
    """
    network = build_sharded(architecture, efficiency, rank=rank, num_processes=num_processes)
    sizes = {name: _numel(module) for name, module in network.items()}
    blocks = _numel(backbone_of(network).blocks)
    return Holdings(
        local=sum(local_part(parameter).numel() for parameter in network.parameters()),
        block=blocks // architecture.model.depth,
        embeddings=sizes["backbone"] - blocks,
        heads=sum(sizes.values()) - sizes["backbone"],
        sharded=num_processes > 1,
    )


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
