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
from dinov2.train.curves import append_row
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import StepValues
from dinov2.train.step import LOSS_SCALE, Outcome

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
Watch = Callable[[float], dict[str, float]]
Dump = Callable[[int, RawBatch, StepValues, dict[str, float]], None]


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
    started_step: int = 0
    started: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    shown: float = field(default_factory=time.perf_counter)

    def rates(self, batch_size: int) -> dict[str, float]:
        """images_per_s and the share of time spent waiting for data, since this start."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "images_per_s": (self.step - self.started_step) * batch_size / seconds,
            "data_wait_share": self.waited_s / seconds,
        }


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
        self, params: RecipeParams, progress: Progress, *, work: Path, watch: Watch | None, dump: Dump
    ) -> None:
        """`watch` looks at the networks as they are, given the teacher's temperature; `dump` keeps a step's batch."""
        self.params = params
        self.progress = progress
        self.work = work
        self.watch = watch
        self.dump = dump
        self._pending: deque[_Pending] = deque()

    def add(self, raw: RawBatch, values: StepValues, outcomes: Mapping[str, Outcome]) -> None:
        """The step that `progress.step` counts last. Raises DivergedError if too many in a row were not finite."""
        names = [_named(learner, name) for learner, outcome in outcomes.items() for name in outcome.names]
        numbers, ready = _to_cpu(torch.cat([outcome.values for outcome in outcomes.values()]))
        self._pending.append(_Pending(self.progress.step, raw, values, names, numbers, ready))
        while len(self._pending) > (0 if ready is None or self._is_watched(self.progress.step) else 1):
            self._judge(self._pending.popleft())

    def settle(self) -> None:
        """Judge all steps that were added: before a checkpoint counts them, and at the end."""
        while self._pending:
            self._judge(self._pending.popleft())

    def _is_watched(self, step: int) -> bool:
        every = self.params.watch.every_steps
        return every is not None and (step in (1, self.params.num_steps) or step % every == 0)

    def _judge(self, one: _Pending) -> None:
        if one.ready is not None:
            one.ready.synchronize()
        numbers = dict(zip(one.names, one.numbers.tolist(), strict=True))
        for learner in self.progress.skipped:
            self._count(learner, one, numbers)
        self._record(one, numbers)

    def _count(self, learner: str, one: _Pending, numbers: dict[str, float]) -> None:
        progress = self.progress
        bad = [name for name, value in numbers.items() if not isfinite(value) and name.startswith(_named(learner, ""))]
        if not bad:
            progress.skipped_in_a_row[learner] = 0
            return
        progress.skipped[learner] += 1
        where = f"step {one.step}" + (f" of {learner}" if learner else "")
        scale = numbers.get(_named(learner, LOSS_SCALE), 1.0)
        if scale > 1 and all("grad_norm" in name for name in bad):
            logger.info("%s: gradients overflow fp16 at a loss scale of %g; it is halved", where, scale)
            return
        progress.skipped_in_a_row[learner] += 1
        logger.warning("%s: %s not finite, so nothing was updated", where, ", ".join(bad))
        self.dump(one.step, one.raw, one.values, numbers)
        if progress.skipped_in_a_row[learner] >= self.params.watch.max_skipped_in_a_row:
            raise DivergedError(
                f"{', '.join(bad)} not finite at {where} on rank {rank()}, {progress.skipped_in_a_row[learner]} steps "
                f"in a row; lower base_lr or replay a step kept in {self.work / 'not_finite'}"
            )

    def _record(self, one: _Pending, losses: dict[str, float]) -> None:
        """Add to the curves and show a line, each when it is due."""
        params, progress = self.params, self.progress
        is_end = one.step in (1, params.num_steps)
        watched = self._is_watched(one.step)
        if is_end or watched or one.step % params.log_every_steps == 0:
            row = {key: value for key, value in losses.items() if isfinite(value)}  # JSON has no NaN
            row |= one.values._asdict() | progress.rates(params.batch_size)
            if torch.cuda.is_available():
                row["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
            if watched and self.watch is not None:
                row |= self.watch(one.values.teacher_temperature)
            if rank() == 0:
                append_row(self.work / "metrics.jsonl", one.step, row)
        now = time.perf_counter()
        if is_end or now - progress.shown >= PROGRESS_EVERY_S:
            progress.shown = now
            logger.info("%s", _line(one.step, progress, params, losses))


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
    rates = progress.rates(params.batch_size)
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
