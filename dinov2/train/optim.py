"""The optimiser: AdamW with layer-wise learning rates, and gradients clipped for each network part by itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dinov2.models.vit import VisionTransformer
from dinov2.train.objective import local_part
from dinov2.train.params import OptimParams
from dinov2.train.schedules import StepValues


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

    Keys: params, lr_multiplier, weight_decay_multiplier, is_last_layer, is_backbone.
    """
    groups: dict[tuple[bool, Multipliers], list[nn.Parameter]] = {}
    for part, module in modules.items():
        multipliers = parameter_multipliers(module, params)
        for name, parameter in module.named_parameters():
            groups.setdefault((part == "backbone", multipliers[name]), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": key.lr,
            "weight_decay_multiplier": key.weight_decay,
            "is_last_layer": key.is_last_layer,
            "is_backbone": is_backbone,
        }
        for (is_backbone, key), parameters in groups.items()
    ]


def build_optimizer(modules: nn.ModuleDict, params: OptimParams) -> AdamW:
    """AdamW over the student's parts, in one fused kernel; rates come by `set_rates`.

    Every parameter has its state from the start, so that a checkpoint is whole even where some never get a gradient
    (the mask token without masks, a head whose loss is off).
    """
    groups = parameter_groups(modules, params)
    optimizer = AdamW(groups, lr=0.0, betas=(params.beta1, params.beta2), weight_decay=0.0, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def set_rates(optimizer: Optimizer, values: StepValues) -> None:
    """This step's learning rates and weight decay, times each group's multipliers."""
    for group in optimizer.param_groups:
        lr = values.backbone_lr if group["is_backbone"] else values.lr
        group["lr"] = (values.last_layer_lr if group["is_last_layer"] else lr) * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["weight_decay_multiplier"]


@torch.no_grad()
def clip(modules: nn.ModuleDict, clip_norm: float, *, scale: Tensor | None = None) -> dict[str, Tensor]:
    """Scales the gradients of each module to at most the L2 norm `clip_norm`; returns the norms before, by module.

    Gradients of a loss times `scale` are divided by it. Not-finite norms are returned as they are: the caller must not
    step then. Waits for nothing.
    """
    norms = {}
    for name, module in modules.items():
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if not gradients:
            norms[name] = torch.zeros((), device=next(module.parameters()).device)
            continue
        norm = nn.utils.get_total_norm(gradients).float()
        full = getattr(norm, "full_tensor", None)  # a sharded module's norm is a DTensor
        norm = full() if full else norm
        inverse = norm.new_ones(()) if scale is None else 1 / scale
        norms[name] = norm * inverse
        factor = (clip_norm / (norms[name] + 1e-6)).clamp(max=1.0) * inverse
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)  # pyright: ignore[reportPrivateImportUsage]
    return norms


class LossScale:
    """The factor on an fp16 loss: halved after a step that was not finite, doubled after `GROWTH_STEPS` that were."""

    START = 2.0**16
    GROWTH_STEPS = 2000

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(self.START, device=device)
        self.num_good = torch.zeros((), device=device)

    def update(self, not_finite: Tensor) -> None:
        """After a step; `not_finite` is 1 or 0, on the device."""
        self.num_good = torch.where(not_finite > 0, 0.0, self.num_good + 1)
        grown = self.num_good >= self.GROWTH_STEPS
        self.value = torch.where(not_finite > 0, self.value / 2, torch.where(grown, self.value * 2, self.value))
        self.num_good = torch.where(grown, 0.0, self.num_good)

    def state(self) -> dict[str, float]:
        """What a checkpoint remembers."""
        return {"value": self.value.item(), "num_good": self.num_good.item()}

    def load(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        self.value.fill_(state["value"])
        self.num_good.fill_(state["num_good"])
