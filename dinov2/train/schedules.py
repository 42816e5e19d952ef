"""What changes from step to step, as pure functions of the step."""

from math import cos, pi
from typing import NamedTuple

from dinov2.train.params import ScheduleParams


class StepValues(NamedTuple):
    """The values of one step."""

    lr: float
    backbone_lr: float
    """Of the backbone: 0 in the first steps of a run with given weights."""
    last_layer_lr: float
    """Of the prototypes: 0 in the first steps."""
    weight_decay: float
    momentum: float
    """Of the teacher, or of the student's average."""
    teacher_temperature: float


def values_at(step: int, params: ScheduleParams, *, num_steps: int, peak_lr: float) -> StepValues:
    """The values of `step`, counted from 0; from `num_steps` on the final ones."""
    lr = _warmup_cosine(step, peak_lr, params.min_lr, params.warmup_steps, num_steps)
    return StepValues(
        lr=lr,
        backbone_lr=0.0 if step < params.freeze_backbone_steps else lr,
        last_layer_lr=0.0 if step < params.freeze_last_layer_steps else lr,
        weight_decay=_cosine(step, params.weight_decay_start, params.weight_decay_end, num_steps),
        momentum=_cosine(step, params.momentum_start, params.momentum_end, num_steps),
        teacher_temperature=_linear(
            step,
            params.teacher_temperature_start,
            params.teacher_temperature_end,
            params.teacher_temperature_warmup_steps,
        ),
    )


def _linear(step: int, start: float, end: float, num_steps: int) -> float:
    """From `start` at step 0 to `end` at step num_steps - 1, and `end` from there on."""
    if step >= num_steps - 1:
        return end
    return start + step * (end - start) / (num_steps - 1)


def _cosine(step: int, start: float, end: float, num_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step num_steps, and `end` from there on."""
    if step >= num_steps:
        return end
    return end + 0.5 * (start - end) * (1 + cos(pi * step / num_steps))


def _warmup_cosine(step: int, peak: float, end: float, warmup_steps: int, num_steps: int) -> float:
    if step < warmup_steps:
        return _linear(step, 0.0, peak, warmup_steps)
    return _cosine(step - warmup_steps, peak, end, num_steps - warmup_steps)
