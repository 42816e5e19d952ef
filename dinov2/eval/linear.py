"""Linear probe: linear classifiers on frozen features, many at once, the best chosen without a look at the test images.

After the reference's protocol (a grid of learning rates times inputs, SGD with momentum, no weight decay, cosine to 0),
scaled down and with two differences. Features are those of the centre crop, computed once: no random crops or flips.
And the reference reports the best classifier *on the images it reports*; here a split of the training images chooses
learning rate and input, a classifier with these is trained on all training images, and the test images judge it once.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dinov2.eval.features import FrozenFeatures
from dinov2.eval.params import LinearParams
from dinov2.metrics import accuracy


class Probe(NamedTuple):
    """Scores of the chosen classifier and how it was chosen."""

    scores: Float[Tensor, "m c"]
    learning_rate: float
    uses_patches: bool
    """Whether its input is class token and mean patch token, not the class token alone."""
    validation_top1: float
    """Of the chosen classifier, on the split that chose it."""


def linear_probe(
    train: FrozenFeatures,
    train_labels: Int[Tensor, " n"],
    test: FrozenFeatures,
    *,
    num_classes: int,
    params: LinearParams,
    seed: int,
) -> Probe:
    """Choose a learning rate and an input on a split of the training images, train on all of them, score the test."""
    used, held = _split(train_labels, params.validation_share, seed)
    fit = partial(_train, num_classes=num_classes, params=params, seed=seed)
    best: tuple[float, int, bool] | None = None
    for uses_patches in (False, True):
        inputs = _inputs(train, uses_patches)
        weight, bias = fit(inputs[used], train_labels[used], learning_rates=params.learning_rates)
        logits = torch.einsum("nd,gcd->gnc", inputs[held], weight) + bias[:, None]
        for number, scores in enumerate(logits):
            top1 = accuracy(scores, train_labels[held], 1)
            if best is None or top1 > best[0]:
                best = (top1, number, uses_patches)
    assert best is not None
    top1, number, uses_patches = best
    rate = params.learning_rates[number]
    weight, bias = fit(_inputs(train, uses_patches), train_labels, learning_rates=[rate])
    return Probe(_inputs(test, uses_patches) @ weight[0].T + bias[0], rate, uses_patches, top1)


def _inputs(features: FrozenFeatures, uses_patches: bool) -> Float[Tensor, "n _"]:
    return torch.cat([features.cls, features.mean_patch], dim=1) if uses_patches else features.cls


def _split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Masks of the images to train on and to choose by: of each label at least one is held out, and never all.

    Where every label has but one image, both are all images, and the choice is hardly one.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label)[:, 0]
        num = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:num]]] = True
    if not held.any():
        return torch.ones_like(held), torch.ones_like(held)
    return ~held, held


def _train(
    inputs: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    learning_rates: list[float],
    num_classes: int,
    params: LinearParams,
    seed: int,
) -> tuple[Float[Tensor, "g c d"], Float[Tensor, "g c"]]:
    """SGD on the cross-entropy of g classifiers that differ in their learning rate and see the same batches."""
    generator = torch.Generator().manual_seed(seed)
    num, dim = inputs.shape
    first = torch.randn(num_classes, dim, generator=generator) * 0.01
    weight = first.repeat(len(learning_rates), 1, 1).requires_grad_()
    bias = torch.zeros(len(learning_rates), num_classes, requires_grad=True)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    batch_size = min(params.batch_size, num)
    rates = torch.tensor(learning_rates)[:, None] * batch_size / 256
    order = torch.empty(0, dtype=torch.long)
    for step in range(params.num_steps):
        if len(order) < batch_size:
            order = torch.randperm(num, generator=generator)
        batch, order = order[:batch_size], order[batch_size:]
        logits = torch.einsum("bd,gcd->gbc", inputs[batch], weight) + bias[:, None]
        targets = labels[batch].repeat(len(learning_rates))
        loss = F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum") / batch_size
        weight_gradient, bias_gradient = torch.autograd.grad(loss, (weight, bias))
        weight_speed.mul_(params.momentum).add_(weight_gradient)
        bias_speed.mul_(params.momentum).add_(bias_gradient)
        rate = rates * (1 + math.cos(math.pi * step / params.num_steps)) / 2
        with torch.no_grad():
            weight -= rate[..., None] * weight_speed
            bias -= rate * bias_speed
    return weight.detach(), bias.detach()
