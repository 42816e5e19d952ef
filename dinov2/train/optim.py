"""The optimiser: AdamW with layer-wise learning rates, and gradients clipped for each network part by itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinov2.models.vit import VisionTransformer
from dinov2.train.params import OptimParams


class Multipliers(NamedTuple):
    """What a parameter makes of the schedules."""

    lr: float
    weight_decay: float
    is_last_layer: bool
    """A prototype, which stays as it is in the first steps."""


def parameter_multipliers(module: nn.Module, params: OptimParams) -> dict[str, Multipliers]:
    """Multipliers of every parameter of a backbone or a head, by name.

    A backbone's learning rate falls by layerwise_decay from block to block downwards; tokens, positions and the patch
    embedding lie below the first block. Biases, norms and LayerScale have no weight decay.
    """
    depth = len(module.blocks) if isinstance(module, VisionTransformer) else None
    return {name: _multipliers(name, depth, params) for name, _ in module.named_parameters()}


def _multipliers(name: str, depth: int | None, params: OptimParams) -> Multipliers:
    lr = 1.0
    if depth is not None:
        layer = depth + 1
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        elif "embed" in name or "token" in name:
            layer = 0
        lr = params.layerwise_decay ** (depth + 1 - layer)
        if name.startswith("patch_embed."):
            lr *= params.patch_embed_lr_multiplier
    decays = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
    return Multipliers(lr, float(decays), "last_layer" in name)


def parameter_groups(modules: nn.ModuleDict, params: OptimParams) -> list[dict[str, Any]]:
    """Groups for torch optimisers: the parameters of all `modules` that share their multipliers, which the groups hold.

    Keys: params, lr_multiplier, weight_decay_multiplier, is_last_layer.
    """
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    for module in modules.values():
        multipliers = parameter_multipliers(module, params)
        for name, parameter in module.named_parameters():
            groups.setdefault(multipliers[name], []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": key.lr,
            "weight_decay_multiplier": key.weight_decay,
            "is_last_layer": key.is_last_layer,
        }
        for key, parameters in groups.items()
    ]


def build_optimizer(modules: nn.ModuleDict, params: OptimParams) -> torch.optim.AdamW:
    """AdamW over the student's parts, in one fused kernel where the device has it; rates come by `set_rates`.

    Every parameter has its state from the start, so that a checkpoint is whole even where some never get a gradient
    (the mask token without masks, a head whose loss is off).
    """
    groups = parameter_groups(modules, params)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(params.beta1, params.beta2), weight_decay=0.0, fused=fused)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, last_layer_lr: float, weight_decay: float) -> None:
    """This step's learning rates and weight decay, times each group's multipliers."""
    for group in optimizer.param_groups:
        group["lr"] = (last_layer_lr if group["is_last_layer"] else lr) * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["weight_decay_multiplier"]


def clip(modules: nn.ModuleDict, clip_norm: float) -> dict[str, Tensor]:
    """Scales the gradients of each module, if need be, to the L2 norm `clip_norm`; returns the norms before, by module.

    Not-finite norms are returned as they are: the caller must not step then.
    """
    norms = {}
    for name, module in modules.items():
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        full = getattr(norm, "full_tensor", None)  # a sharded module's norm is a DTensor
        norms[name] = full() if full else norm
    return norms
