"""Networks spread over processes with FSDP2; a single process keeps the plain modules and runs the same code."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from dinov2.distributed import world_size
from dinov2.train.objective import backbone_of
from dinov2.train.params import RecipeParams


def parallelize(networks: Iterable[nn.ModuleDict], precision: str, device: torch.device) -> None:
    """Move networks to `device` and shard them: each block by itself, then the rest of the backbone, then each head.

    Master weights and gradients' sums are fp32; with "bf16" weights travel and compute in bf16. Every process must hold
    the same initial weights.
    """
    for network in networks:
        network.to(device)
        if world_size() == 1:
            continue
        shard(network, init_device_mesh(device.type, (world_size(),)), precision)


def shard(network: nn.ModuleDict, mesh: DeviceMesh, precision: str) -> None:
    """Leave each process of `mesh` its part of every parameter of `network`, in place."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast decides
    )
    backbone = backbone_of(network)
    for block in backbone.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(backbone, "features_packed")
    for name, module in network.items():
        if name != "backbone":
            fully_shard(module, mesh=mesh, mp_policy=policy)


def autocast(params: RecipeParams, device: torch.device) -> torch.autocast:
    """The arithmetic of forward passes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=params.precision == "bf16")
