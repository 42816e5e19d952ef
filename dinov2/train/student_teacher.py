"""Pretraining's two networks: a student that learns, and a teacher that is its moving average (paper, section 4)."""

import copy
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from dinov2.models.attention import Backend
from dinov2.models.params import HeadParams, ViTParams
from dinov2.models.recompute import Recompute
from dinov2.train.objective import (
    Batch,
    Targeting,
    Targets,
    build_network,
    init_network,
    move_average,
    student_losses,
)
from dinov2.train.params import LossParams

__all__ = ["Batch", "StudentTeacher"]


class StudentTeacher(nn.Module):
    """The whole objective. `student` and `teacher` are ModuleDicts of backbone, dino_head and, if untied, ibot_head."""

    def __init__(
        self,
        model: ViTParams,
        dino_head: HeadParams,
        ibot_head: HeadParams | None,
        loss: LossParams,
        *,
        group_size: int,
        attention: Backend,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.loss = loss
        self.group_size = group_size
        self.student = build_network(model, dino_head, ibot_head, attention=attention, recompute=recompute)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.targeting = Targeting(loss, dino_head, ibot_head)

    def train(self, mode: bool = True) -> "StudentTeacher":
        """As usual, but the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def targets(self, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """What the student is to predict of each part of a batch: of both global crops, and of their masked patches.

        Of all parts together, so that the targets do not depend on their number.
        """
        return self.targeting(self.teacher, parts, temperature)

    def losses(
        self, batch: Batch, targets: Targets, *, group_seeds: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """(the weighted sum to take the gradient of; its unweighted terms dino_local, dino_global, ibot, koleo).

        Terms are on the scale that is optimised; one whose weight is 0 is left out. `group_seeds`, one for each
        `group_size` images, decide stochastic depth; needed only where the model has it. The student's global crops are
        masked only if the patch-level loss is on.
        """
        masked = self.loss.ibot_weight > 0
        return student_losses(
            self.student, batch, targets, self.loss, masked=masked, group_size=self.group_size, group_seeds=group_seeds
        )

    def update_teacher(self, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, backbone and heads."""
        move_average(self.teacher, self.student, momentum)

    def init_weights(self) -> None:
        """Fresh student weights and the same for the teacher; fills a pair that was built on the meta device."""
        init_network(self.student)
        self.teacher.load_state_dict(self.student.state_dict())
        for buffer in self.targeting.buffers():
            buffer.zero_()
