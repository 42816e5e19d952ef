"""What steps say of themselves: counted, judged, and written to the curves; on a GPU one step late, without a wait.

A step that was not finite changed no weight (see `step`). Here it is counted and its batch is kept; too many in a row
end the run. With fp16 a gradient that overflows at a loss scale above 1 is no failure: the scale is being found.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinov2.data.collate import RawBatch
from dinov2.distributed import rank
from dinov2.progress import bar
from dinov2.train.curves import CURVES, append_row, flush_rows
from dinov2.train.dump import Dumps
from dinov2.train.health import Alarms, Meter
from dinov2.train.learning import Learning
from dinov2.train.objective import architecture_of
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import StepValues
from dinov2.train.step import LOSS_SCALE, Outcome
from dinov2.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
Watch = Callable[[float], dict[str, dict[str, float]]]
"""Given the teacher's temperature, what the monitor sees of each learner."""


class DivergedError(RuntimeError):
    """Losses or gradients stayed infinite or NaN."""


@dataclass
class Progress:
    """What goes on from one start of a run to the next, and what tells how fast this start is."""

    step: int
    """Steps done."""
    skipped: dict[str, int]
    """Steps without an update, by learner."""
    skipped_in_a_row: dict[str, int]
    shown: float = field(default_factory=time.perf_counter)
    rates: dict[str, float] = field(default_factory=dict)


class _Pending(NamedTuple):
    step: int
    raw: RawBatch
    values: StepValues
    names: list[str]
    numbers: Tensor
    ready: torch.cuda.Event | None


class Outcomes:
    """Takes the outcome of every step."""

    def __init__(
        self,
        learning: Learning,
        params: RecipeParams,
        progress: Progress,
        *,
        work: Path,
        meter: Meter,
        watch: Watch | None,
        watchdog: Watchdog,
    ) -> None:
        """`watch` looks at the networks as they are; None: no looks. Made by all processes together.

        Only looks and dumps pause the watchdog: it is in waiting for a step's numbers that a hung collective shows.
        """
        self.learning = learning
        self.params = params
        self.progress = progress
        self.work = work
        self.meter = meter
        self.watch = watch
        self.watchdog = watchdog
        self._dumps = Dumps(work / "not_finite", max_dumps=params.watch.max_dumps)
        self._alarms = {
            name: Alarms(
                num_prototypes=architecture_of(network).dino_head.num_prototypes,
                min_effective_rank=params.watch.min_effective_rank,
                max_chance_steps=params.watch.max_chance_steps,
            )
            for name, network in learning.learners().items()
        }
        self._pending: deque[_Pending] = deque()

    def add(self, raw: RawBatch, values: StepValues, outcomes: Mapping[str, Outcome]) -> None:
        """The step that `progress.step` counts last. Raises DivergedError if too many in a row were not finite."""
        names = [_named(learner, name) for learner, outcome in outcomes.items() for name in outcome.names]
        numbers, ready = _to_cpu(torch.cat([outcome.values for outcome in outcomes.values()]))
        self._pending.append(_Pending(self.progress.step, raw, values, names, numbers, ready))
        while len(self._pending) > (0 if ready is None or self._is_watched(self.progress.step) else 1):
            self._judge(self._pending.popleft())

    def settle(self) -> None:
        """Judge all steps that were added, and have them on disk: before a checkpoint counts them, and at the end."""
        while self._pending:
            self._judge(self._pending.popleft())
        if rank() == 0:
            flush_rows(self.work / CURVES)

    def _is_watched(self, step: int) -> bool:
        every = self.params.watch.every_steps
        if self.watch is None or every is None:
            return False
        return step in (1, self.params.num_steps) or step % every == 0

    def _judge(self, one: _Pending) -> None:
        if one.ready is not None:
            one.ready.synchronize()
        numbers = dict(zip(one.names, one.numbers.tolist(), strict=True))
        failed = [name for name in self.progress.skipped if self._is_bad(name, one, numbers)]
        if failed:
            scale = numbers.get(_named(failed[0], LOSS_SCALE))
            with self.watchdog.paused():
                self._dumps.write(
                    self.learning, self.params, one.raw,
                    step=one.step, values=one.values, numbers=numbers, learners=failed, loss_scale=scale,
                )  # fmt: skip
        self._record(one, numbers)
        worst = max(self.progress.skipped_in_a_row.values())
        if worst >= self.params.watch.max_skipped_in_a_row:
            raise DivergedError(
                f"{', '.join(_not_finite(numbers))} not finite at step {one.step} on rank {rank()}, {worst} steps "
                "in a row; lower base_lr, or see where it begins: "
                f"python -m dinov2.train.replay {self._dumps.folder}/step-..."
            )

    def _is_bad(self, learner: str, one: _Pending, numbers: dict[str, float]) -> bool:
        """Whether a learner's step failed; counts it, and tells."""
        progress = self.progress
        bad = _not_finite({name: value for name, value in numbers.items() if name.startswith(_named(learner, ""))})
        if not bad:
            progress.skipped_in_a_row[learner] = 0
            return False
        progress.skipped[learner] += 1
        where = f"step {one.step}" + (f" of {learner}" if learner else "")
        scale = numbers.get(_named(learner, LOSS_SCALE), 1.0)
        if scale > 1 and all("grad_norm" in name for name in bad):
            logger.info("%s: gradients overflow fp16 at a loss scale of %g; it is halved", where, scale)
            return False
        progress.skipped_in_a_row[learner] += 1
        logger.warning("%s: %s not finite, so nothing was updated", where, ", ".join(bad))
        return True

    def _record(self, one: _Pending, losses: dict[str, float]) -> None:
        """Add to the curves and show a line, each when it is due."""
        params, progress = self.params, self.progress
        is_end = one.step in (1, params.num_steps)
        is_watched = self._is_watched(one.step)
        if is_end or is_watched or one.step % params.log_every_steps == 0:
            progress.rates = self.meter.rates()
            row = {key: value for key, value in losses.items() if isfinite(value)}  # JSON has no NaN
            row |= one.values._asdict() | progress.rates
            seen = self._look(one.values.teacher_temperature) if is_watched else {}
            row |= {_named(name, key): value for name, values in seen.items() for key, value in values.items()}
            if rank() == 0:
                self._warn(one.step, losses, seen)
                append_row(self.work / CURVES, one.step, row)
        now = time.perf_counter()
        if progress.rates and (is_end or now - progress.shown >= PROGRESS_EVERY_S):
            progress.shown = now
            logger.info("%s", _line(one.step, progress, params, losses))

    def _look(self, temperature: float) -> dict[str, dict[str, float]]:
        assert self.watch is not None
        with self.meter.paused(), self.watchdog.paused():
            return self.watch(temperature)

    def _warn(self, step: int, losses: dict[str, float], seen: dict[str, dict[str, float]]) -> None:
        for name, alarms in self._alarms.items():
            own = {key.removeprefix(_named(name, "")): value for key, value in losses.items()}
            young = step <= self.params.schedule.warmup_steps  # fresh features say nothing yet
            of_features = [] if young else alarms.of_features(seen.get(name, {}))
            for sentence in alarms.of_losses(step, own) + of_features:
                logger.warning("step %d%s: %s", step, f" of {name}" if name else "", sentence)


def _not_finite(numbers: Mapping[str, float]) -> list[str]:
    return [name for name, value in numbers.items() if not isfinite(value)]


def _to_cpu(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the CPU, and when it is there; None: now."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return copy, ready


def _named(learner: str, key: str) -> str:
    return f"{learner}/{key}" if learner else key


def _line(step: int, progress: Progress, params: RecipeParams, losses: dict[str, float]) -> str:
    rates = progress.rates
    left_s = (params.num_steps - step) * params.batch_size / max(rates["images_per_s"], 1e-9)
    shown = {
        key: value for key, value in losses.items() if key.endswith("/total") or not ("/" in key or "grad" in key)
    }
    totals = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
    far = f"{bar(step, params.num_steps)}  step {step} of {params.num_steps}"
    return (
        f"{far}  {totals}  {rates['images_per_s']:.0f} images/s  "
        f"wait {rates['data_wait_share']:.0%}  left {left_s // 60:.0f} min {left_s % 60:.0f} s"
    )
