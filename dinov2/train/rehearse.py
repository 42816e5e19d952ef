"""The sharding of a training, rehearsed without its machines: networks on the meta device, processes pretended.

torch's fake process group answers every collective at once without moving data, so that one process can take any rank
of any number of them; parameters on the meta device have shapes and no memory. The sharding is that of training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dinov2.train.memory import Holdings
from dinov2.train.objective import backbone_of, build_network
from dinov2.train.parallelize import shard
from dinov2.train.params import Architecture


@contextmanager
def pretended_process(rank: int, num_processes: int) -> Iterator[None]:
    """Within the body this process is `rank` of `num_processes`, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend, too

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_sharded(architecture: Architecture, *, rank: int, num_processes: int) -> nn.ModuleDict:
    """A network (backbone and heads) as `rank` of `num_processes` holds it, on the meta device.

    With several processes its parameters are DTensors, whose local parts are of use after this, too.
    """
    with torch.device("meta"):
        network = build_network(architecture.model, architecture.dino_head, architecture.ibot_head, "sdpa")
    if num_processes > 1:
        with pretended_process(rank, num_processes):
            shard(network, init_device_mesh("cpu", (num_processes,)), "bf16")
    return network


def rehearse_holdings(architecture: Architecture, *, rank: int, num_processes: int) -> Holdings:
    """What `rank` of `num_processes` (one shard each) holds of a network.

    Every parameter is cut along its first dimension into parts of ceil(length / processes), for which it may not last to
    the end: rank 0 holds the most, the last rank the least.
    """
    network = build_sharded(architecture, rank=rank, num_processes=num_processes)
    block = sum(parameter.numel() for parameter in backbone_of(network).blocks[0].parameters())
    whole = sum(parameter.numel() for parameter in network.parameters())
    return Holdings(
        local=sum(_local(parameter).numel() for parameter in network.parameters()),
        block=block,
        rest=whole - block * architecture.model.depth,
        sharded=num_processes > 1,
    )


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
