"""The training loop: schedules, steps, clipping, averages, curves, checkpoints, and being stopped in good order.

Everything that has an effect stands here: optimiser, clock, disk. The mathematics is a `Learning`. One process on a CPU
runs the same code as many on GPUs. Randomness is drawn from (seed, step), so a resumed run equals an uninterrupted one.
"""

import logging
import time
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinov2.data.collate import BadSamples, Collator, RawBatch, finish
from dinov2.data.loader import Loader
from dinov2.data.sampler import Source
from dinov2.distributed import all_reduce_sum, rank, world_size
from dinov2.models.head import DINOHead
from dinov2.progress import bar
from dinov2.train.checkpoint import Checkpoints
from dinov2.train.curves import append_row
from dinov2.train.dump import Dumps
from dinov2.train.health import Alarms, Meter
from dinov2.train.interrupt import Interruption
from dinov2.train.learning import Learning
from dinov2.train.monitor import Monitor
from dinov2.train.objective import Batch
from dinov2.train.optim import build_optimizer, clip, set_rates
from dinov2.train.parallelize import autocast, parallelize
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import StepValues, values_at
from dinov2.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 5
MAX_DUMPS = 2
STALL_S = 1800.0
MIN_EFFECTIVE_RANK = 1.5
MAX_CHANCE_STEPS = 2000
PROGRESS_EVERY_S = 5.0


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
    shown: float = field(default_factory=time.perf_counter)
    rates: dict[str, float] = field(default_factory=dict)

    def extra(self) -> dict[str, dict[str, int]]:
        """What a checkpoint remembers."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}


def train(
    learning: Learning,
    params: RecipeParams,
    source: Source,
    *,
    patch_size: int,
    work: Path,
    fingerprint: str,
    device: torch.device,
) -> dict[str, int]:
    """Train to the last step, from the newest checkpoint in `work` if there is one; returns skipped steps by learner.

    Writes work/metrics.jsonl, work/checkpoints/, work/bad_samples.jsonl. Raises InputError for a checkpoint of another
    fingerprint or unreadable images, DivergedError after five steps in a row that were not finite.
    """
    parallelize(learning.networks(), params.precision, device)
    learners = learning.learners()
    optimizers: dict[str, Optimizer] = {name: build_optimizer(net, params.optim) for name, net in learners.items()}
    checkpoints = Checkpoints(work / "checkpoints", fingerprint=fingerprint, num_kept=params.keep_checkpoints)
    progress = Progress(0, dict.fromkeys(learners, 0), dict.fromkeys(learners, 0))
    loaded = checkpoints.load_newest(learning.saved, optimizers)
    if loaded is not None:
        progress.step = progress.started_step = loaded[0]
        progress.skipped, progress.skipped_in_a_row = loaded[1]["skipped"], loaded[1]["skipped_in_a_row"]
        logger.info("going on after step %d of %d", progress.step, params.num_steps)
    if progress.step >= params.num_steps:
        return progress.skipped
    work.mkdir(parents=True, exist_ok=True)
    monitor = Monitor(
        source, num_images=params.monitor_images, size_px=params.crops.global_size_px, seed=params.seed, device=device
    )
    collator = Collator(
        source, params.crops, params.masks, seed=params.seed, batch_size=params.batch_size,
        group_size=params.group_size, patch_size=patch_size, rank=rank(), world_size=world_size(),
        bad_samples=BadSamples(work / "bad_samples.jsonl"),
    )  # fmt: skip
    for network in learners.values():
        network.train()

    steps = range(progress.step, params.num_steps)
    threads = num_data_threads(device)
    dumps = Dumps(work / "not_finite", max_dumps=MAX_DUMPS)
    alarms = {name: _alarms(network) for name, network in learners.items()}
    with (
        Interruption() as interruption,
        checkpoints,
        Watchdog(STALL_S) as watchdog,
        Loader(lambda step: _load(collator, step, device), steps, num_threads=threads, num_ahead=threads + 2) as loader,
    ):
        meter = Meter(batch_size=params.batch_size, flops_per_step=None)
        progress.shown = time.perf_counter()
        batches = iter(loader)
        while progress.step < params.num_steps:
            watchdog.beat(progress.step, "data")
            with meter.waiting():
                raw, crops = next(batches)
            watchdog.beat(progress.step, "the step")
            batch = Batch(*(crops if crops is not None else finish(raw, device)))
            values = values_at(progress.step, params.schedule, num_steps=params.num_steps, peak_lr=params.peak_lr)
            losses, updated = _step(
                learning, params, batch,
                group_seeds=raw.group_seeds, values=values, optimizers=optimizers, device=device,
            )  # fmt: skip
            meter.step_done()
            if failed := [name for name, was_updated in updated.items() if not was_updated]:
                dumps.write(
                    learning, params, raw,
                    step=progress.step, values=values, numbers=losses, learners=failed, loss_scale=None,
                )  # fmt: skip
            _count_skipped(updated, losses, progress, dumps)
            progress.step += 1
            with watchdog.paused():
                _record(
                    learning, params, progress,
                    losses=losses, values=values, monitor=monitor, meter=meter, alarms=alarms, work=work,
                )  # fmt: skip
            is_last = progress.step == params.num_steps
            boundary = interruption.agreed(has_failed=checkpoints.has_failed, is_last=is_last)
            with watchdog.paused():
                if boundary.has_failed:
                    checkpoints.wait()
                if boundary.signal or is_last or progress.step % params.checkpoint_every_steps == 0:
                    checkpoints.save(progress.step, learning.saved, optimizers, progress.extra())
                if boundary.signal is not None:
                    checkpoints.wait()
                    logger.warning("%s: saved after step %d", boundary.signal.name, progress.step)
                    interruption.pass_on(boundary.signal)
    return progress.skipped


def _alarms(network: nn.ModuleDict) -> Alarms:
    num_prototypes = cast(DINOHead, network["dino_head"]).params.num_prototypes
    return Alarms(
        num_prototypes=num_prototypes, min_effective_rank=MIN_EFFECTIVE_RANK, max_chance_steps=MAX_CHANCE_STEPS
    )


def num_data_threads(device: torch.device) -> int:
    """Threads that make batches: as many as this process has cores beside a GPU, a quarter beside a CPU's own work."""
    num_cores = torch.get_num_threads()
    return num_cores if device.type == "cuda" else max(1, num_cores // 4)


def _load(collator: Collator, step: int, device: torch.device) -> tuple[RawBatch, tuple[Tensor, Tensor, Tensor] | None]:
    """A batch; where a CPU trains, colours are finished here, beside the training thread's work."""
    raw = collator(step)
    if device.type == "cpu":
        return raw, finish(raw, device)
    pinned = raw._replace(global_crops=raw.global_crops.pin_memory(), local_crops=raw.local_crops.pin_memory())
    return pinned, None


def _step(
    learning: Learning,
    params: RecipeParams,
    batch: Batch,
    *,
    group_seeds: list[int],
    values: StepValues,
    optimizers: dict[str, Optimizer],
    device: torch.device,
) -> tuple[dict[str, float], dict[str, bool]]:
    """One step of every learner; returns the losses and gradient norms of all, and whether each was updated.

    A learner whose loss or gradient is not finite is left as it was. Losses are means over all processes.
    """
    learners = learning.learners()
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    report: dict[str, float] = {}
    updated: dict[str, bool] = {}
    with autocast(params, device):
        each = learning.losses(batch, teacher_temperature=values.teacher_temperature, group_seeds=group_seeds)
    while True:
        with autocast(params, device):
            item = next(each, None)
            if item is None:
                return report, updated
            name, losses = item
            total = learning.total(losses)
        total.backward()
        norms = clip(learners[name], params.optim.clip_norm)
        terms = {**losses, "total": total}
        means = all_reduce_sum(torch.stack([value.detach().float() for value in terms.values()])) / world_size()
        numbers = torch.cat([means, torch.stack([norm.float() for norm in norms.values()])]).tolist()  # the one wait
        keys = [*terms, *(f"grad_norm_{part}" for part in norms)]
        report |= {_named(name, key): number for key, number in zip(keys, numbers, strict=True)}
        updated[name] = all(isfinite(number) for number in numbers)
        if updated[name]:
            rates = {"lr": values.lr, "last_layer_lr": values.last_layer_lr, "weight_decay": values.weight_decay}
            set_rates(optimizers[name], **rates)
            optimizers[name].step()
            learning.update_average(name, values.momentum)


def _named(learner: str, key: str) -> str:
    return f"{learner}/{key}" if learner else key


def _count_skipped(updated: dict[str, bool], losses: dict[str, float], progress: Progress, dumps: Dumps) -> None:
    """Count and tell of what was not finite; raises DivergedError after five steps in a row."""
    for name, was_updated in updated.items():
        if was_updated:
            progress.skipped_in_a_row[name] = 0
            continue
        progress.skipped[name] += 1
        progress.skipped_in_a_row[name] += 1
        bad = [key for key, value in losses.items() if not isfinite(value) and key.startswith(_named(name, ""))]
        where = f"step {progress.step}" + (f" of {name}" if name else "")
        logger.warning("%s: %s not finite, so nothing was updated", where, ", ".join(bad))
        if progress.skipped_in_a_row[name] >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"{', '.join(bad)} not finite at {where}, {MAX_SKIPPED_IN_A_ROW} steps in a row; lower base_lr, or see "
                f"where it begins: python -m dinov2.train.replay {dumps.folder}/step-..."
            )


def _record(
    learning: Learning,
    params: RecipeParams,
    progress: Progress,
    *,
    losses: dict[str, float],
    values: StepValues,
    monitor: Monitor,
    meter: Meter,
    alarms: dict[str, Alarms],
    work: Path,
) -> None:
    """Add to the curves and show a line, each when it is due."""
    is_end = progress.step in (1, params.num_steps)
    watch = is_end or progress.step % params.monitor_every_steps == 0
    if watch or progress.step % params.log_every_steps == 0:
        row = {key: value for key, value in losses.items() if isfinite(value)}  # JSON has no NaN
        progress.rates = meter.rates()
        row |= values._asdict() | progress.rates
        sentences = [(name, one) for name, alarm in alarms.items() for one in alarm.of_losses(progress.step, {
            key.removeprefix(_named(name, "")): value for key, value in losses.items()
        })]  # fmt: skip
        if watch:
            with meter.paused():
                for name, network in learning.watched().items():
                    seen = monitor.values(network, values.teacher_temperature)
                    sentences += [(name, one) for one in alarms[name].of_features(seen)]
                    row |= {_named(name, key): value for key, value in seen.items()}
        if rank() == 0:
            for name, sentence in sentences:
                logger.warning("step %d%s: %s", progress.step, f" of {name}" if name else "", sentence)
            append_row(work / "metrics.jsonl", progress.step, row)
    now = time.perf_counter()
    if progress.rates and (is_end or now - progress.shown >= PROGRESS_EVERY_S):
        progress.shown = now
        logger.info("%s", _line(progress, params, losses))


def _line(progress: Progress, params: RecipeParams, losses: dict[str, float]) -> str:
    rates = progress.rates
    left_s = (params.num_steps - progress.step) * params.batch_size / max(rates["images_per_s"], 1e-9)
    shown = {key: value for key, value in losses.items() if key.endswith("/total") or not ("/" in key or "grad" in key)}
    totals = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
    far = f"{bar(progress.step, params.num_steps)}  step {progress.step} of {params.num_steps}"
    return (
        f"{far}  {totals}  {rates['images_per_s']:.0f} images/s  "
        f"wait {rates['data_wait_share']:.0%}  left {left_s // 60:.0f} min {left_s % 60:.0f} s"
    )
