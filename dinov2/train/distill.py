"""Distillation: a frozen, larger teacher with both its heads teaches students that share each of its passes.

As pretraining, except (paper, section 5): the teacher does not change; no masks and no stochastic depth; the
patch-level loss is taken on all patches of both global crops; and a moving average of the student, which feeds nothing
back, is what comes out.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2.models.attention import Backend
from dinov2.models.head import DINOHead
from dinov2.models.params import HeadParams, ViTParams
from dinov2.models.recompute import Recompute
from dinov2.params import InputError
from dinov2.train.objective import (
    Batch,
    Targeting,
    Targets,
    backbone_of,
    build_network,
    init_network,
    move_average,
    student_losses,
)
from dinov2.train.params import LossParams


class DistilledStudent(nn.Module):
    """A student with heads of its own, and its moving average: `average["backbone"]` is the product."""

    def __init__(
        self,
        model: ViTParams,
        dino_head: HeadParams,
        ibot_head: HeadParams | None,
        *,
        attention: Backend,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        if model.drop_path > 0:
            raise InputError(f"a distilled student has drop_path {model.drop_path}; distillation has none, set it to 0")
        self.student = build_network(model, dino_head, ibot_head, attention=attention, recompute=recompute)
        self.average = copy.deepcopy(self.student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DistilledStudent":
        """As usual, but the average always stays in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    def update_average(self, momentum: float) -> None:
        """average = momentum * average + (1 - momentum) * student."""
        move_average(self.average, self.student, momentum)

    def init_weights(self) -> None:
        """Fresh weights and the same for the average; fills a student that was built on the meta device."""
        init_network(self.student)
        self.average.load_state_dict(self.student.state_dict())


class Distiller(nn.Module):
    """A frozen `teacher` (ModuleDict of backbone, dino_head and, unless tied, ibot_head) and what it asks."""

    def __init__(self, teacher: nn.ModuleDict, loss: LossParams, *, group_size: int) -> None:
        super().__init__()
        self.loss = loss
        self.group_size = group_size
        self.teacher = teacher.requires_grad_(False).eval()
        dino_head = cast(DINOHead, teacher["dino_head"]).params
        ibot_head = cast(DINOHead, teacher["ibot_head"]).params if "ibot_head" in teacher else None
        self.targeting = Targeting(loss, dino_head, ibot_head)

    def train(self, mode: bool = True) -> "Distiller":
        """As usual, but the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def check_student(self, student: DistilledStudent) -> None:
        """Raises InputError if `student` can't answer this teacher: other patches, other prototypes, other tying."""
        mine, its = backbone_of(self.teacher).params.patch_size, backbone_of(student.student).params.patch_size
        if mine != its:
            raise InputError(f"the student's patch_size is {its} but its teacher's {mine}; make them equal")
        if ("ibot_head" in student.student) != ("ibot_head" in self.teacher):
            raise InputError("of student and teacher one has an ibot_head and one has not; give both or neither")
        for name in self.teacher:
            if name == "backbone":
                continue
            asked = cast(DINOHead, self.teacher[name]).params.num_prototypes
            given = cast(DINOHead, student.student[name]).params.num_prototypes
            if asked != given:
                raise InputError(
                    f"the student's {name} has {given} prototypes but its teacher's {asked}; make them equal"
                )

    def targets(self, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """What every student is to predict, of both global crops and of all their patches; masks are not looked at."""
        whole = [part._replace(masks=torch.ones_like(part.masks), max_masked=0) for part in parts]
        return self.targeting(self.teacher, whole, temperature)

    def losses(
        self, student: DistilledStudent, batch: Batch, targets: Targets
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """(the weighted sum to take the gradient of, its unweighted terms) as in pretraining, for one student."""
        whole = batch._replace(max_masked=0)
        return student_losses(
            student.student, whole, targets, self.loss, masked=False, group_size=self.group_size, group_seeds=None
        )
