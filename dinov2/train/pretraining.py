"""A whole pretraining, from params and images to a backbone: what bootstrap, pretrain and highres are."""

import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dinov2.data.collate import read_bad_samples
from dinov2.data.sources import Source
from dinov2.distributed import process_group, rank, world_size
from dinov2.models.vit import resize_positions
from dinov2.params import InputError
from dinov2.records import Summary
from dinov2.train.checkpoint import full_state
from dinov2.train.curves import plot_losses, read_rows, write_csv
from dinov2.train.learning import Pretraining
from dinov2.train.loop import train
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.products import SHOWN, TRAINING, final_metrics, part, write_backbone, write_training
from dinov2.train.student_teacher import StudentTeacher

logger = logging.getLogger(__name__)


def pretrain(
    recipe: RecipeParams,
    architecture: Architecture,
    source: Source,
    *,
    stage: str,
    out: Path,
    work: Path,
    initial: dict[str, Tensor] | None,
) -> Summary:
    """Train a student with its teacher and write the teacher's backbone, all networks, curves and figure into `out`.

    `initial` holds `student.*` and `teacher.*` to go on from (see `products.read_training`), None means fresh weights.
    `work` holds what survives a kill; its name is the run's fingerprint. Raises InputError for what a person can mend.
    """
    check_sizes(recipe, architecture.model.patch_size)
    device = local_device()
    with process_group(device):
        torch.manual_seed(recipe.seed)
        pair = StudentTeacher(
            architecture.model, architecture.dino_head, architecture.ibot_head, recipe.loss,
            group_size=recipe.group_size, attention=recipe.efficiency.attention, recompute=recipe.efficiency.recompute,
        )  # fmt: skip
        if initial is not None:
            pair.student.load_state_dict(part(initial, "student."), strict=True)
            pair.teacher.load_state_dict(part(initial, "teacher."), strict=True)
        logger.info("%s: %d images, %d steps of %d", stage, len(source), recipe.num_steps, recipe.batch_size)
        skipped = train(
            Pretraining(pair), recipe, source,
            patch_size=architecture.model.patch_size, work=work, fingerprint=work.name, device=device,
        )  # fmt: skip
        state = full_state(pair)
        rows = read_rows(work / "metrics.jsonl")
        if rank() == 0:
            write_training(out / TRAINING, state, architecture)
            write_backbone(
                out, part(state, "teacher.backbone."), architecture.model, image_size_px=recipe.crops.global_size_px,
                training={"stage": stage, "run": work.name, "params": recipe.model_dump(mode="json")},
            )  # fmt: skip
            write_csv(out / "curves.csv", rows)
            plot_losses(out / "figures" / "losses.png", rows, list(SHOWN))
        if world_size() > 1:
            dist.barrier()
    return summarise(source, work, final_metrics(rows) | {"skipped_steps": float(sum(skipped.values()))})


def summarise(source: Source, work: Path, metrics: dict[str, float]) -> Summary:
    """Counts of images, and which of them could not be read, with a run's metrics."""
    num_bad = len(read_bad_samples(work / "bad_samples.jsonl"))
    dropped = {"unreadable": num_bad} if num_bad else {}
    return Summary(num_in=len(source), num_kept=len(source) - num_bad, dropped=dropped, metrics=metrics)


def local_device() -> torch.device:
    """The GPU of this process if it was given one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def check_sizes(recipe: RecipeParams, patch_size: int) -> None:
    """Raises InputError if a crop is no whole number of patches."""
    sizes = {"global_size_px": recipe.crops.global_size_px, "local_size_px": recipe.crops.local_size_px}
    for name, size_px in sizes.items():
        if size_px % patch_size:
            raise InputError(f"crops.{name} is {size_px}, no multiple of patch_size {patch_size}; change it")


def at_resolution(
    state: dict[str, Tensor], architecture: Architecture, size_px: int
) -> tuple[dict[str, Tensor], Architecture]:
    """Networks whose position embeddings have a grid for images of `size_px`, resized bicubically by size."""
    patch_size = architecture.model.patch_size
    if size_px % patch_size:
        raise InputError(f"crops.global_size_px is {size_px}, no multiple of patch_size {patch_size}; change it")
    grid = size_px // patch_size
    resized = {
        name: resize_positions(value, grid, grid, offset=0.0, antialias=False) if name.endswith(".pos_embed") else value
        for name, value in state.items()
    }
    return resized, architecture.model_copy(
        update={"model": architecture.model.model_copy(update={"image_size_px": size_px})}
    )
