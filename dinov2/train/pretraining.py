"""A whole pretraining, from params and images to a backbone: what bootstrap, pretrain and highres are."""

import logging
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dinov2.data.collate import read_bad_samples
from dinov2.data.sources import Source, digest
from dinov2.distributed import local_device, process_group, rank, world_size
from dinov2.hub import load_initial_backbone, resize_grid
from dinov2.params import InputError
from dinov2.records import Summary
from dinov2.train.checkpoint import full_state
from dinov2.train.curves import CURVES, plot_losses, read_rows, write_csv
from dinov2.train.learning import Pretraining
from dinov2.train.loop import train
from dinov2.train.params import Architecture, RecipeParams, TrainParams
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

    `initial` holds `student.*` and `teacher.*` to go on from, whole (`products.read_training`) or their backbones alone
    (`initial_backbones`, where heads are fresh); None means fresh weights. `work` holds what survives a kill; its name
    is part of the run's fingerprint. Raises InputError for what a person can mend.
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
            _start_from(pair, initial)
        logger.info("%s: %d images, %d steps of %d", stage, len(source), recipe.num_steps, recipe.batch_size)
        skipped = train(
            Pretraining(pair), recipe, source,
            patch_size=architecture.model.patch_size, work=work, fingerprint=fingerprint_of(work, source, initial),
            device=device,
        )  # fmt: skip
        state = full_state(pair)
        rows = read_rows(work / CURVES)
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


def initial_backbones(params: TrainParams) -> dict[str, Tensor] | None:
    """The backbone that `init_from` names, for student and teacher both; None if it names none.

    Raises InputError if it is absent or of another architecture than `model`.
    """
    if params.init_from is None:
        return None
    weights = load_initial_backbone(Path(params.init_from.path), params.init_from.architecture, params.model)
    return {f"{role}.backbone.{name}": value for role in ("student", "teacher") for name, value in weights.items()}


def _start_from(pair: StudentTeacher, initial: dict[str, Tensor]) -> None:
    for role, network in (("student", pair.student), ("teacher", pair.teacher)):
        for name, module in network.items():
            own = part(initial, f"{role}.{name}.")
            if own:
                module.load_state_dict(own, strict=True)
        assert part(initial, f"{role}.backbone."), "there is no backbone to start from"


def fingerprint_of(work: Path, source: Source, initial: dict[str, Tensor] | None) -> str:
    """What a run's checkpoints belong to: params, inputs and version (in `work`'s name), images, first weights."""
    weights = sorted(initial.items()) if initial else []
    values = [f"{name} {sha256(value.contiguous().numpy().tobytes()).hexdigest()}" for name, value in weights]
    return digest([work.name, source.fingerprint(), *values])[:16]


def summarise(source: Source, work: Path, metrics: dict[str, float]) -> Summary:
    """Counts of images, and which of them could not be read, with a run's metrics."""
    num_bad = len(read_bad_samples(work / "bad_samples.jsonl"))
    dropped = {"unreadable": num_bad} if num_bad else {}
    return Summary(num_in=len(source), num_kept=len(source) - num_bad, dropped=dropped, metrics=metrics)


def check_sizes(recipe: RecipeParams, patch_size: int) -> None:
    """Raises InputError if a crop is no whole number of patches."""
    sizes = {"global_size_px": recipe.crops.global_size_px, "local_size_px": recipe.crops.local_size_px}
    for name, size_px in sizes.items():
        if size_px % patch_size:
            raise InputError(f"crops.{name} is {size_px}, no multiple of patch_size {patch_size}; change it")


def at_resolution(
    state: dict[str, Tensor], architecture: Architecture, size_px: int
) -> tuple[dict[str, Tensor], Architecture]:
    """Networks whose position embeddings have a grid for images of `size_px`, with the same outputs at that size."""
    if size_px % architecture.model.patch_size:
        raise InputError(
            f"crops.global_size_px is {size_px}, no multiple of patch_size {architecture.model.patch_size}; change it"
        )
    resized = dict(state)
    for role in ("student", "teacher"):
        backbone = resize_grid(part(state, f"{role}.backbone."), architecture.model, size_px)
        resized |= {f"{role}.backbone.{name}": value for name, value in backbone.items()}
    return resized, architecture.model_copy(
        update={"model": architecture.model.model_copy(update={"image_size_px": size_px})}
    )
