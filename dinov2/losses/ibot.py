"""The patch-level loss: the student's masked patches against the teacher's targets of the same patches, unmasked."""

from jaxtyping import Float
from torch import Tensor

from dinov2.losses.centering import Assignment
from dinov2.losses.cross_entropy import Student, cross_entropy


def ibot_loss(
    targets: Assignment, student: Student, weights: Float[Tensor, " m"], *, num_crops: int
) -> Float[Tensor, ""]:
    """Mean over all `num_crops` global crops, masked or not, of a crop's mean cross-entropy over its masked patches.

    `targets` and `student` are of one view of m patches (features [1 m d]); `weights` are 1 / (masked patches of that
    patch's crop). No masked patch at all gives 0.
    """
    loss, _ = cross_entropy(targets, student, student.features.new_ones(1, 1), weights / num_crops)
    return loss
