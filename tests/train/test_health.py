"""Health: alarms ring once each time a collapse begins; speeds leave pauses out; k-NN where some labels are known."""

import time
from math import log

import pytest
import torch
from test_loop import RECIPE, Pictures, pair

from dinov2.train.health import Alarms, Meter
from dinov2.train.monitor import Monitor

HEALTHY = {"effective_rank": 9.0, "teacher_entropy": 2.0, "prototypes_used": 40.0}


def alarms() -> Alarms:
    return Alarms(num_prototypes=64, min_effective_rank=3.0, max_chance_steps=10)


@pytest.mark.parametrize(
    ("sick", "word"),
    [
        ({"effective_rank": 2.5}, "2.5, below min_effective_rank 3"),
        ({"teacher_entropy": log(64) - 0.001}, "entropy is 4.16 of at most 4.16"),
        ({"prototypes_used": 1.2}, "1.2 of 64 prototypes"),
    ],
)
def test_alarm_rings_once_each_time_it_begins(sick: dict[str, float], word: str) -> None:
    alarm = alarms()
    assert alarm.of_features(HEALTHY) == []
    (sentence,) = alarm.of_features(HEALTHY | sick)
    assert word in sentence
    assert alarm.of_features(HEALTHY | sick) == []
    assert alarm.of_features(HEALTHY) == []
    assert len(alarm.of_features(HEALTHY | sick)) == 1


def test_alarm_of_chance_rings_after_so_many_steps_in_a_row() -> None:
    alarm = alarms()
    guessed = {"dino_local": log(64) * 16 / 18, "dino_global": log(64) * 2 / 18, "ibot": 1.0}
    rung = [step for step in range(30) if alarm.of_losses(step, guessed)]
    assert rung == [10]
    assert alarm.of_losses(30, {"dino_local": 2.0, "dino_global": 0.2}) == []
    assert not any(alarm.of_losses(step, guessed) for step in range(31, 41))
    assert len(alarm.of_losses(41, guessed)) == 1


def test_alarms_can_be_switched_off() -> None:
    off = Alarms(num_prototypes=64, min_effective_rank=None, max_chance_steps=None)
    assert off.of_features({"effective_rank": 1.0, "teacher_entropy": 0.0, "prototypes_used": 1.0}) == []
    assert not any(off.of_losses(step, {"dino_global": log(64)}) for step in range(100))


def test_meter_counts_steps_and_waiting_but_no_pauses() -> None:
    meter = Meter(batch_size=10, flops_per_step=2e12, peak_tflops=None)
    with meter.waiting():
        time.sleep(0.1)
    time.sleep(0.1)
    with meter.paused():
        time.sleep(0.3)
    meter.step_done()
    rates = meter.rates()
    assert 10 / 0.35 < rates["images_per_s"] <= 10 / 0.2
    assert rates["model_tflops_per_s"] == pytest.approx(rates["images_per_s"] / 10 * 2)
    assert 0.25 < rates["data_wait_share"] < 0.6
    assert 0.05 < rates["rss_gb"] < 100
    assert meter.rates()["images_per_s"] == 0  # of the time since the last reading only


class HalfLabelled(Pictures):
    def label(self, i: int) -> str | None:
        return None if i % 2 else "ab"[i // 2 % 2]


class Unlabelled(Pictures):
    def label(self, i: int) -> str | None:
        return None


def watched(source: Pictures) -> dict[str, float]:
    monitor = Monitor(source, num_images=12, size_px=32, seed=0, device=torch.device("cpu"))
    return monitor.values(pair(RECIPE).teacher, 0.07)


def test_knn_uses_the_labelled_images_and_is_absent_without_labels() -> None:
    values = watched(HalfLabelled())
    assert 0 <= values["knn"] <= 1
    assert round(values["knn"] * 6, 6).is_integer()  # a share of the six labelled ones
    without = watched(Unlabelled())
    assert "knn" not in without
    assert without["effective_rank"] == values["effective_rank"]
