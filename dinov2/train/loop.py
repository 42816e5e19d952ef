"""The training loop: schedules, steps, curves, checkpoints, and being stopped in good order.

Everything that has an effect stands here: optimiser, clock, disk. The mathematics is a `Learning`. One process on a CPU
runs the same code as many on GPUs. Randomness is drawn from (seed, step), so a resumed run equals an uninterrupted one.
"""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov2.data.collate import BadSamples, Collator, RawBatch, finish
from dinov2.data.loader import Loader
from dinov2.data.masking import max_masked
from dinov2.data.sources import Source
from dinov2.distributed import rank, world_size
from dinov2.gpus import peak_tflops
from dinov2.heap import keep_heap
from dinov2.train.checkpoint import Checkpoints
from dinov2.train.flops import flops_per_step
from dinov2.train.health import Meter
from dinov2.train.interrupt import Interruption
from dinov2.train.learning import Learning
from dinov2.train.monitor import Monitor
from dinov2.train.objective import Batch, architecture_of
from dinov2.train.outcomes import DivergedError, Outcomes, Progress, Watch
from dinov2.train.parallelize import parallelize
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import values_at
from dinov2.train.step import Optimisers, build_optimisers, take_step
from dinov2.train.watchdog import Watchdog

__all__ = ["DivergedError", "train"]

logger = logging.getLogger(__name__)


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
    fingerprint or unreadable images, DivergedError after too many steps in a row that were not finite.
    """
    keep_heap()
    parallelize(learning.networks(), params.efficiency, device)
    learners = learning.learners()
    optimisers = {name: build_optimisers(network, params, device) for name, network in learners.items()}
    adamws = {name: each.adamw for name, each in optimisers.items()}
    checkpoints = Checkpoints(work / "checkpoints", fingerprint=fingerprint, num_kept=params.keep_checkpoints)
    progress = Progress(0, dict.fromkeys(learners, 0), dict.fromkeys(learners, 0))
    loaded = checkpoints.load_newest(learning.saved, adamws)
    if loaded is not None:
        _go_on(progress, *loaded, optimisers)
        logger.info("going on after step %d of %d", progress.step, params.num_steps)
    if progress.step >= params.num_steps:
        return progress.skipped
    work.mkdir(parents=True, exist_ok=True)
    meter = _meter(learning, params, device)
    watchdog = Watchdog(params.watch.stall_s)
    outcomes = Outcomes(
        learning, params, progress,
        work=work, meter=meter, watch=_watch(learning, params, source, device), watchdog=watchdog,
    )  # fmt: skip
    collator = Collator(
        source, params.crops, params.masks, seed=params.seed, batch_size=params.batch_size,
        group_size=params.group_size, patch_size=patch_size, rank=rank(), world_size=world_size(),
        bad_samples=BadSamples(work / "bad_samples.jsonl"), num_parts=params.efficiency.num_micro_batches,
    )  # fmt: skip
    most_masked = _most_masked(params, patch_size) if params.efficiency.compile else 0
    for network in learners.values():
        network.train()

    steps = range(progress.step, params.num_steps)
    threads = num_data_threads(device)
    with (
        Interruption() as interruption,
        checkpoints,
        watchdog,
        Loader(lambda step: _load(collator, step, device), steps, num_threads=threads, num_ahead=threads + 2) as loader,
    ):
        batches = iter(loader)
        while progress.step < params.num_steps:
            watchdog.beat(progress.step, "data")
            with meter.waiting():
                raw, crops = next(batches)
            watchdog.beat(progress.step, "the step")
            batch = Batch(*(crops if crops is not None else finish(raw, device)), most_masked)
            values = values_at(progress.step, params.schedule, num_steps=params.num_steps, peak_lr=params.peak_lr)
            compiles = params.efficiency.compile and progress.step == steps.start
            with watchdog.paused() if compiles else nullcontext():
                outcome = take_step(
                    learning, params, batch,
                    group_seeds=raw.group_seeds, values=values, optimisers=optimisers, device=device,
                )  # fmt: skip
            progress.step += 1
            meter.step_done()
            boundary = interruption.agreed(
                has_failed=checkpoints.has_failed, is_last=progress.step == params.num_steps
            )
            outcomes.add(raw, values, outcome)
            is_saved = boundary.signal is not None or _is_save_due(progress.step, params)
            if is_saved:
                outcomes.settle()
            with watchdog.paused():
                if boundary.has_failed:
                    checkpoints.wait()
                if is_saved:
                    checkpoints.save(progress.step, learning.saved, adamws, _extra(progress, optimisers))
                if boundary.signal is not None:
                    checkpoints.wait()
                    logger.warning("%s: saved after step %d", boundary.signal.name, progress.step)
                    interruption.pass_on(boundary.signal)
    return progress.skipped


def _is_save_due(step: int, params: RecipeParams) -> bool:
    return step == params.num_steps or step % params.checkpoint_every_steps == 0


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


def _most_masked(params: RecipeParams, patch_size: int) -> int:
    """Patches that the masks of one process's batch may cover."""
    grid = params.crops.global_size_px // patch_size
    num_groups = params.batch_size // world_size() // params.group_size
    return num_groups * max_masked(params.masks, num_images=params.group_size, grid=grid)


def _watch(learning: Learning, params: RecipeParams, source: Source, device: torch.device) -> Watch | None:
    """Looks at all watched networks; None if that is switched off."""
    if params.watch.every_steps is None:
        return None
    monitor = Monitor(
        source, num_images=params.watch.images, size_px=params.crops.global_size_px, seed=params.seed, device=device
    )

    def watch(temperature: float) -> dict[str, dict[str, float]]:
        return {name: monitor.values(network, temperature) for name, network in learning.watched().items()}

    return watch


def _meter(learning: Learning, params: RecipeParams, device: torch.device) -> Meter:
    """Counts the arithmetic of a single learner; of several that share a teacher's pass, only images."""
    learners = list(learning.learners().values())
    flops: float | None = None
    if len(learners) == 1:
        flops = float(flops_per_step(params, architecture_of(learners[0]), num_processes=world_size()).total)
    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    whole = None if peak is None else peak * world_size()
    return Meter(batch_size=params.batch_size, flops_per_step=flops, peak_tflops=whole)


def _extra(progress: Progress, optimisers: dict[str, Optimisers]) -> dict[str, Any]:
    """What a checkpoint remembers beside tensors."""
    scales = {name: each.scale.state() for name, each in optimisers.items() if each.scale is not None}
    return {"skipped": progress.skipped, "skipped_in_a_row": progress.skipped_in_a_row, "loss_scales": scales}


def _go_on(progress: Progress, step: int, extra: dict[str, Any], optimisers: dict[str, Optimisers]) -> None:
    progress.step = step
    progress.skipped, progress.skipped_in_a_row = extra["skipped"], extra["skipped_in_a_row"]
    for name, state in extra["loss_scales"].items():
        scale = optimisers[name].scale
        assert scale is not None, "a checkpoint of fp16 belongs to fp16: precision is in the fingerprint"
        scale.load(state)
