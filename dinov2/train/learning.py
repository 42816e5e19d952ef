"""What the loop trains: one student with its teacher (pretraining), or several students of one frozen teacher.

Both give the loop the same few things: the networks that learn, by name; their losses, one learner after the other, so
that only one graph is in memory; and what is averaged, watched and saved.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.objective import Batch
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

    def losses(
        self, batch: Batch, *, teacher_temperature: float, group_seeds: Sequence[int]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(learner, its unweighted losses), lazily: the caller takes the gradient before it asks for the next."""
        ...

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of a learner's losses."""
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

    def losses(
        self, batch: Batch, *, teacher_temperature: float, group_seeds: Sequence[int]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The student's losses."""
        yield "", self.pair.losses(batch, teacher_temperature=teacher_temperature, group_seeds=group_seeds)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return self.pair.total(losses)

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

    def losses(
        self, batch: Batch, *, teacher_temperature: float, group_seeds: Sequence[int]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each student's losses, against targets that were made once."""
        targets = self.distiller.teacher_targets(batch, teacher_temperature)
        for name in self.students:
            yield name, self.distiller.student_losses(self._student(name), batch, targets)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return self.distiller.total(losses)

    def update_average(self, name: str, momentum: float) -> None:
        """Move a student's average."""
        self._student(name).update_average(momentum)
