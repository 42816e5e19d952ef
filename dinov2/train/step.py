"""One step of every learner, without waiting for the device: a step whose numbers are not finite changes no weight.

Whether losses and gradients are finite is known to the device alone while the next step is already being queued; the
optimiser's kernels take it as a tensor. On a GPU the average still moves, as the reference's does, towards a student
that stayed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinov2.distributed import all_reduce_sum, world_size
from dinov2.train.learning import Learning
from dinov2.train.objective import Batch
from dinov2.train.optim import LossScale, build_optimizer, clip, set_rates
from dinov2.train.parallelize import autocast
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import StepValues

LOSS_SCALE = "loss_scale"


class Outcome(NamedTuple):
    """What a step says of one learner, still on the device."""

    names: list[str]
    values: Tensor
    """Unweighted losses and their weighted `total`, means over all processes; gradient norms before clipping; with fp16
    the loss scale."""


class Optimisers(NamedTuple):
    """What moves one learner's weights."""

    adamw: Optimizer
    scale: LossScale | None
    """Of fp16's gradients."""


def build_optimisers(network: nn.ModuleDict, params: RecipeParams, device: torch.device) -> Optimisers:
    """The optimisers of one learner."""
    scale = LossScale(device) if params.efficiency.precision == "fp16" else None
    return Optimisers(build_optimizer(network, params.optim), scale)


def take_step(
    learning: Learning,
    params: RecipeParams,
    batch: Batch,
    *,
    group_seeds: Sequence[int],
    values: StepValues,
    optimisers: Mapping[str, Optimisers],
    device: torch.device,
) -> dict[str, Outcome]:
    """Forward, backward, update and average of every learner, in `num_micro_batches` parts of the batch."""
    num_parts = params.efficiency.num_micro_batches
    parts = batch.parts(num_parts)
    with autocast(params.efficiency.precision, device):
        targets = learning.targets(parts, values.teacher_temperature)
    seeds = _chunks(group_seeds, num_parts)
    outcomes = {}
    for name, (adamw, scale) in optimisers.items():
        adamw.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for part, target, part_seeds in zip(parts, targets, seeds, strict=True):
            with autocast(params.efficiency.precision, device):
                total, terms = learning.losses(name, part, target, part_seeds)
            (total / num_parts if scale is None else total * (scale.value / num_parts)).backward()
            for term, value in {**terms, "total": total.detach()}.items():
                sums[term] = sums.get(term, 0) + value / num_parts
        outcomes[name] = _update(learning, name, params, sums, values=values, adamw=adamw, scale=scale)
    return outcomes


def _chunks(seeds: Sequence[int], num_parts: int) -> list[Sequence[int]]:
    size = len(seeds) // num_parts
    return [seeds[size * part : size * (part + 1)] for part in range(num_parts)]


def _update(
    learning: Learning,
    name: str,
    params: RecipeParams,
    losses: Mapping[str, Tensor],
    *,
    values: StepValues,
    adamw: Optimizer,
    scale: LossScale | None,
) -> Outcome:
    means = all_reduce_sum(torch.stack([value.float() for value in losses.values()])) / world_size()
    norms = clip(learning.learners()[name], params.optim.clip_norm, scale=None if scale is None else scale.value)
    outcome = torch.cat([means, torch.stack(list(norms.values()))])
    not_finite = (~outcome.isfinite().all()).float()
    names = [*losses, *(f"grad_norm_{part}" for part in norms)]
    set_rates(adamw, values)
    adamw.found_inf = not_finite  # pyright: ignore[reportAttributeAccessIssue]  # how torch's grad scaler tells fused kernels
    adamw.step()
    if scale is not None:
        names, outcome = [*names, LOSS_SCALE], torch.cat([outcome, scale.value.view(1)])
        scale.update(not_finite)
    if not_finite.device.type != "cpu" or not not_finite:  # asking a GPU would wait for it
        learning.update_average(name, values.momentum)
    return Outcome(names, outcome)
