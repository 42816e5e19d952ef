"""The image-level loss: a student's CLS logits against a teacher's targets from other crops of the same image."""

import torch
from jaxtyping import Float
from torch import Tensor


def cross_entropy(
    targets: Float[Tensor, "*n k"], logits: Float[Tensor, "*n k"], *, temperature: float
) -> Float[Tensor, "*n"]:
    """-sum_k target_k log softmax(logits / temperature)_k of each row, fp32; targets need not sum to 1.

    Written as mass * logsumexp - product, which keeps no log-probabilities for the backward pass.
    """
    scaled = logits.float() / temperature
    targets = targets.float()
    return targets.sum(-1) * torch.logsumexp(scaled, dim=-1) - (targets * scaled).sum(-1)


def dino_local_loss(
    targets: Float[Tensor, "g b k"], logits: Float[Tensor, "l b k"], *, temperature: float
) -> Float[Tensor, ""]:
    """Sum over all pairs of a global crop's targets and a local crop's logits, of cross-entropy's mean over images."""
    return cross_entropy(targets.sum(0).expand(len(logits), -1, -1), logits, temperature=temperature).mean(1).sum()


def dino_global_loss(
    targets: Float[Tensor, "2 b k"], logits: Float[Tensor, "2 b k"], *, temperature: float
) -> Float[Tensor, ""]:
    """Sum over the two global crops of the mean cross-entropy of one's logits with the other's targets."""
    return cross_entropy(targets.flip(0), logits, temperature=temperature).mean(1).sum()


def num_dino_terms(num_local: int) -> int:
    """Pairs of different crops, which the sums above are divided by: 2 global and 2 for each local crop (18 with 8)."""
    return 2 + 2 * num_local
