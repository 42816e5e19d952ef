"""What the loop trains: one student with its teacher (pretraining), or several students of one frozen teacher.

Both give the loop the same few things: the networks that learn, by name; their targets and losses, part by part, so
that only one graph is in memory; and what is averaged, watched and saved.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.objective import Batch, Targets
from dinov2.train.student_teacher import StudentTeacher


@runtime_checkable  # shapes and types are checked when tests run
class Learning(Protocol):
    """The mathematics of a training run, without optimiser, clock or disk."""

    saved: nn.Module
    """All state that a checkpoint holds."""

    def learners(self) -> dict[str, nn.ModuleDict]:
        """Networks that learn, by name."""
        ...

    def networks(self) -> list[nn.ModuleDict]:
        """Every network, learning or not."""
        ...

    def watched(self) -> dict[str, nn.ModuleDict]:
        """The network of each learner that comes out in the end."""
        ...

    def targets(self, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """What the learners are to predict of each part of a batch."""
        ...

    def losses(
        self, name: str, batch: Batch, targets: Targets, group_seeds: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the weighted sum of a learner's losses of one part, to take the gradient of; its unweighted terms)."""
        ...

    def update_average(self, name: str, momentum: float) -> None:
        """Move a learner's average by a step."""
        ...


class Pretraining:
    """A StudentTeacher as the loop sees it; its one learner has no name."""

    def __init__(self, pair: StudentTeacher) -> None:
        self.pair = pair
        self.saved: nn.Module = pair

    def learners(self) -> dict[str, nn.ModuleDict]:
        """The student."""
        return {"": self.pair.student}

    def networks(self) -> list[nn.ModuleDict]:
        """Student and teacher."""
        return [self.pair.student, self.pair.teacher]

    def watched(self) -> dict[str, nn.ModuleDict]:
        """The teacher."""
        return {"": self.pair.teacher}

    def targets(self, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """The teacher's."""
        return self.pair.targets(parts, temperature)

    def losses(
        self, name: str, batch: Batch, targets: Targets, group_seeds: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's."""
        return self.pair.losses(batch, targets, group_seeds=group_seeds)

    def update_average(self, name: str, momentum: float) -> None:
        """Move the teacher."""
        self.pair.update_teacher(momentum)


class Distillation:
    """Students that share each pass of a frozen teacher. No student's result depends on which others there are."""

    def __init__(self, distiller: Distiller, students: Mapping[str, DistilledStudent]) -> None:
        """Raises InputError if a student can't answer the teacher."""
        for student in students.values():
            distiller.check_student(student)
        self.distiller = distiller
        self.students = nn.ModuleDict(dict(students))
        self.saved: nn.Module = self.students  # the teacher is an input

    def _student(self, name: str) -> DistilledStudent:
        return cast(DistilledStudent, self.students[name])

    def learners(self) -> dict[str, nn.ModuleDict]:
        """The students."""
        return {name: self._student(name).student for name in self.students}

    def networks(self) -> list[nn.ModuleDict]:
        """Students, their averages and the teacher."""
        students = [self._student(name) for name in self.students]
        return [*(each.student for each in students), *(each.average for each in students), self.distiller.teacher]

    def watched(self) -> dict[str, nn.ModuleDict]:
        """The averages."""
        return {name: self._student(name).average for name in self.students}

    def targets(self, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """The frozen teacher's, made once for all students."""
        return self.distiller.targets(parts, temperature)

    def losses(
        self, name: str, batch: Batch, targets: Targets, group_seeds: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A student's."""
        return self.distiller.losses(self._student(name), batch, targets)

    def update_average(self, name: str, momentum: float) -> None:
        """Move a student's average."""
        self._student(name).update_average(momentum)
