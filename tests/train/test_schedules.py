"""Schedules at their edges; tests/test_golden.py holds the numbers."""

import pytest

from dinov2.train.params import ScheduleParams
from dinov2.train.schedules import values_at

PARAMS = ScheduleParams(
    warmup_steps=10,
    min_lr=1e-6,
    weight_decay_start=0.04,
    weight_decay_end=0.4,
    momentum_start=0.9,
    momentum_end=1.0,
    teacher_temperature_start=0.04,
    teacher_temperature_end=0.07,
    teacher_temperature_warmup_steps=5,
    freeze_last_layer_steps=3,
    freeze_backbone_steps=4,
)


def test_warmup_rises_from_zero_to_the_peak_and_then_falls() -> None:
    rates = [values_at(step, PARAMS, num_steps=40, peak_lr=1e-3).lr for step in range(41)]
    assert rates[0] == 0
    assert rates[9] == rates[10] == 1e-3
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[40] == 1e-6


@pytest.mark.parametrize("warmup_steps", [0, 1, 40, 60])
def test_any_warmup_length_is_defined_everywhere(warmup_steps: int) -> None:
    params = PARAMS.model_copy(update={"warmup_steps": warmup_steps, "teacher_temperature_warmup_steps": warmup_steps})
    for step in range(45):
        values = values_at(step, params, num_steps=40, peak_lr=1e-3)
        assert 0 <= values.lr <= 1e-3
        assert 0.04 <= values.teacher_temperature <= 0.07


def test_prototypes_start_late() -> None:
    frozen = [values_at(step, PARAMS, num_steps=40, peak_lr=1e-3).last_layer_lr == 0 for step in range(5)]
    assert frozen == [True, True, True, False, False]
    frozen = [values_at(step, PARAMS, num_steps=40, peak_lr=1e-3).backbone_lr == 0 for step in range(1, 6)]
    assert frozen == [True, True, True, False, False]
