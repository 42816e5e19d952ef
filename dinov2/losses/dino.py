"""The image-level loss: a student's CLS tokens against a teacher's targets from other crops of the same image."""

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2.losses.centering import Assignment
from dinov2.losses.cross_entropy import Student, cross_entropy

NUM_GLOBAL = 2


def dino_loss(
    targets: Assignment, student: Student
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """(loss, its part of the local crops, its part of the global crops); only the first has a gradient.

    `targets` are of the 2 global crops (features [2 b d]), `student.features` [2+l b d] of the global crops, then of l
    local ones. Every pair of a global crop's targets with a different crop has one term, the mean over images of its
    cross-entropy; their sum is divided by the number of pairs (18 with 8 local crops).
    """
    num_crops, num_images = student.features.shape[:2]
    pairs = student.features.new_ones(num_crops, NUM_GLOBAL)
    pairs[:NUM_GLOBAL] -= torch.eye(NUM_GLOBAL, device=pairs.device)
    weight = 1 / (num_dino_terms(num_crops - NUM_GLOBAL) * num_images)
    loss, by_crop = cross_entropy(targets, student, pairs, student.features.new_full((num_images,), weight))
    return loss, by_crop[NUM_GLOBAL:].sum(), by_crop[:NUM_GLOBAL].sum()


def num_dino_terms(num_local: int) -> int:
    """Pairs of different crops of which one is global: 2 global ones and 2 for each local crop."""
    return NUM_GLOBAL + NUM_GLOBAL * num_local
