"""Networks on their device, compiled and spread over processes; one process on a CPU runs the same code.

FSDP2 with fp32 master weights: of the backbone, weights travel and gradients are summed in the step's precision (half
the traffic of fp32); the heads, whose logits need it, stay fp32.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from dinov2.distributed import world_size
from dinov2.params import InputError
from dinov2.train.objective import backbone_of
from dinov2.train.params import EfficiencyParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_COMPILED_SHAPES = 64  # of a block: student and teacher, inner and last, each size that monitors look at


def parallelize(networks: Iterable[nn.ModuleDict], params: EfficiencyParams, device: torch.device) -> None:
    """Move networks to `device`, compile their blocks if asked to, and shard each block, backbone and head.

    Every process must hold the same initial weights. Raises InputError if `shard_processes` does not divide the
    number of processes.
    """
    mesh = process_mesh(params.shard_processes, device) if world_size() > 1 else None
    for network in networks:
        network.to(device)
        if params.compile:
            compile_blocks(network)
        if mesh is not None:
            shard_network(network, mesh, DTYPES[params.precision])


def compile_blocks(network: nn.ModuleDict, *, backend: str = "inductor") -> None:
    """Compile every block in place, for the exact shapes that come; all blocks share what is compiled.

    The compiler chooses by itself which pointwise results the backward pass makes again.
    """
    if backbone_of(network).recompute == "pointwise":
        backbone_of(network).recompute = "none"
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    for block in backbone_of(network).blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def process_mesh(shard_processes: int | None, device: torch.device) -> DeviceMesh:
    """All processes in a line, or in rows of `shard_processes` which each hold one whole copy of the weights."""
    num = world_size()
    if shard_processes is None or shard_processes == num:
        return init_device_mesh(device.type, (num,))
    if num % shard_processes:
        raise InputError(
            f"efficiency.shard_processes is {shard_processes}, which does not divide {num} processes; change one"
        )
    shape = (num // shard_processes, shard_processes)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard_network(network: nn.ModuleDict, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    low = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low, cast_forward_inputs=False)  # autocast decides
    backbone = backbone_of(network)
    for block in backbone.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)
    for method in ("tokens", "features"):
        register_fsdp_forward_method(backbone, method)
    for name, head in network.items():
        if name != "backbone":
            fully_shard(head, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
            register_fsdp_forward_method(head, "bottleneck")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The arithmetic of forward passes."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
