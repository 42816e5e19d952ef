"""The patch-level loss: the student's logits of masked patches against the teacher's targets of the same, unmasked."""

from jaxtyping import Float
from torch import Tensor

from dinov2.losses.dino import cross_entropy


def ibot_loss(
    targets: Float[Tensor, "m k"],
    logits: Float[Tensor, "m k"],
    weights: Float[Tensor, " m"],
    *,
    num_crops: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean over all `num_crops` global crops, masked or not, of a crop's mean cross-entropy over its masked patches.

    `weights` are 1 / (masked patches of that patch's crop). No masked patch at all gives 0.
    """
    return (cross_entropy(targets, logits, temperature=temperature) * weights).sum() / num_crops
