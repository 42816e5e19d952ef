"""How a run fares: how fast, in how much memory, and whether its features or targets are about to collapse.

Numbers in, numbers and sentences out; nothing here waits for a device.
"""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import log

import torch

UNIFORM = 0.99  # of ln K: a teacher this undecided tells the student nothing
ONE_PROTOTYPE = 1.5  # prototypes in use below which there is but one
CHANCE = 0.99  # of ln K: an image-level loss above it is a guess among K prototypes


class Meter:
    """Speed between two readings. All times are this process's."""

    def __init__(self, *, batch_size: int, flops_per_step: float | None, peak_tflops: float | None) -> None:
        """`batch_size` counts all processes' images; `flops_per_step` is the model's arithmetic of one step of all.

        `peak_tflops` is what all their devices together could do at best.
        """
        self.peak_tflops = peak_tflops
        self.batch_size = batch_size
        self.flops_per_step = flops_per_step
        self._since = time.perf_counter()
        self._num_steps = 0
        self._waited_s = 0.0
        self._paused_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: looking at features, making figures."""
        started = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - started

    def step_done(self) -> None:
        """Count a step."""
        self._num_steps += 1

    def rates(self) -> dict[str, float]:
        """images_per_s, data_wait_share and, of all devices together, model_tflops_per_s since the last call; memory.

        `mfu` is the share of the devices' peak (model FLOPs utilisation). `memory_gb` is the most that this process's
        GPU tensors took so far, `rss_gb` that of the whole process.
        """
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused_s, 1e-9)
        values = {
            "images_per_s": self._num_steps * self.batch_size / seconds,
            "data_wait_share": self._waited_s / seconds,
            "rss_gb": peak_rss_bytes() / 2**30,
        }
        if self.flops_per_step is not None:
            values["model_tflops_per_s"] = self._num_steps * self.flops_per_step / seconds / 1e12
            if self.peak_tflops is not None:
                values["mfu"] = values["model_tflops_per_s"] / self.peak_tflops
        if torch.cuda.is_available():
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self._since, self._num_steps, self._waited_s, self._paused_s = now, 0, 0.0, 0.0
        return values


def peak_rss_bytes() -> int:
    """The most memory that this process has ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Alarms:
    """Says what looks like a collapse, once each time it begins. `None` switches an alarm off."""

    def __init__(self, *, num_prototypes: int, min_effective_rank: float | None, max_chance_steps: int | None) -> None:
        """`max_chance_steps`: steps in a row that the image-level loss may stay where guessing would put it."""
        self.num_prototypes = num_prototypes
        self.min_effective_rank = min_effective_rank
        self.max_chance_steps = max_chance_steps
        self._ringing: set[str] = set()
        self._chance_since: int | None = None

    def of_losses(self, step: int, losses: Mapping[str, float]) -> list[str]:
        """What the losses of `step` say; to be called at every step, or at every logged one."""
        terms = [losses[name] for name in ("dino_local", "dino_global") if name in losses]
        if not terms or self.max_chance_steps is None:
            return []
        chance, loss = log(self.num_prototypes), sum(terms)
        at_chance = CHANCE * chance < loss < chance / CHANCE
        if not at_chance:
            self._chance_since = None
        elif self._chance_since is None:
            self._chance_since = step
        num_steps = 0 if self._chance_since is None else step - self._chance_since
        sentence = (
            f"the image-level loss is {loss:.2f} for {num_steps} steps, as if guessed among {self.num_prototypes} "
            f"prototypes ({chance:.2f}): nothing is learnt; lower teacher_temperature or base_lr, lengthen "
            "warmup_steps, or take fewer prototypes"
        )
        return self._begun("chance", at_chance and num_steps >= self.max_chance_steps, sentence)

    def of_features(self, values: Mapping[str, float]) -> list[str]:
        """What the monitor's values say."""
        if self.min_effective_rank is None or not values:
            return []
        rank, entropy, used = (values[name] for name in ("effective_rank", "teacher_entropy", "prototypes_used"))
        uniform = log(self.num_prototypes)
        return [
            *self._begun(
                "rank",
                rank < self.min_effective_rank,
                f"the features' effective rank is {rank:.1f}, below min_effective_rank {self.min_effective_rank:g}: "
                "they collapse to a few directions; raise koleo_weight, lower base_lr, or go back to an earlier "
                "checkpoint",
            ),
            *self._begun(
                "uniform",
                entropy > UNIFORM * uniform,
                f"the teacher's entropy is {entropy:.2f} of at most {uniform:.2f}: it chooses no prototype, so its "
                "targets say nothing; lower teacher_temperature, or raise base_lr if the run is no longer young",
            ),
            *self._begun(
                "one",
                used < ONE_PROTOTYPE,
                f"the teacher uses {used:.1f} of {self.num_prototypes} prototypes: every image gets the same target; "
                "use centering sinkhorn, raise teacher_temperature, or lower base_lr",
            ),
        ]

    def _begun(self, name: str, rings: bool, sentence: str) -> list[str]:
        begins = rings and name not in self._ringing
        (self._ringing.add if rings else self._ringing.discard)(name)
        return [sentence] if begins else []
