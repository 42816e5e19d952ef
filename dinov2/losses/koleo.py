"""KoLeo (arXiv 1806.03198): pushes every image away from its nearest neighbour, so that features fill the sphere."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
"""As in the reference, whose fp16 rounds it to 0, so that one duplicate makes the loss infinite."""

MIN_DISTANCE = 1e-6
"""Features closer than this are equal but for fp32 round-off: their direction is noise, which gives no gradient."""


def koleo_loss(features: Float[Tensor, "*groups b d"]) -> Float[Tensor, " *groups"]:
    """-mean log distance to the nearest neighbour within each group of b >= 2 unit-length features, fp32.

    Neighbours are chosen by cosine without a gradient; both ends of a distance have one. Finite for duplicates.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1, eps=EPSILON)
        with torch.no_grad():
            cosines = x @ x.transpose(-1, -2)
            cosines.diagonal(dim1=-2, dim2=-1).fill_(-2.0)
            nearest = cosines.argmax(dim=-1, keepdim=True)
        neighbors = x.gather(-2, nearest.expand_as(x))
        difference = x - neighbors + EPSILON
        duplicate = torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True) < MIN_DISTANCE
        difference = torch.where(duplicate, difference.detach(), difference)
        return -(torch.linalg.vector_norm(difference, dim=-1) + EPSILON).log().mean(dim=-1)
