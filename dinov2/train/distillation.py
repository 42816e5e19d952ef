"""A whole distillation: from a trained teacher and images to backbones of students that share its passes."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from dinov2.data.draws import integer_seed
from dinov2.data.sources import Source
from dinov2.distributed import local_device, process_group, rank, world_size
from dinov2.params import Params
from dinov2.records import Summary, sha256_file, write_json
from dinov2.train.checkpoint import full_state
from dinov2.train.curves import CURVES, plot_losses, read_rows, write_csv
from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.learning import Distillation
from dinov2.train.loop import train
from dinov2.train.objective import build_network
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.pretraining import check_sizes, fingerprint_of, summarise
from dinov2.train.products import SHOWN, final_metrics, part, read_training, rows_of, write_backbone

logger = logging.getLogger(__name__)

METRICS = "metrics.json"  # the mark of a finished student: written last


class StudentRun(NamedTuple):
    """One student of a distillation."""

    architecture: Architecture
    finished: Path
    """Where its products stay when it is done; named by all that decides them."""


def identity(params: Params, inputs: list[Path], more: object) -> str:
    """A short name that differs as soon as params, the inputs' contents or `more` (plain values) do."""
    parts = [params.model_dump(mode="json"), [sha256_file(path) for path in inputs], more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def distill(
    recipe: RecipeParams, students: dict[str, StudentRun], teacher: Path, source: Source, *, out: Path, work: Path
) -> Summary:
    """Train the students that are not finished and write all of them into `out`, a folder each.

    `teacher` is a training.safetensors, whose teacher is frozen. `work` holds what survives a kill. Raises InputError
    if a student does not fit the teacher.
    """
    device = local_device()
    with process_group(device):
        missing = {name: student for name, student in students.items() if not (student.finished / METRICS).exists()}
        for name in students.keys() - missing.keys():
            logger.info("%s was finished before", name)
        if missing:
            _train_students(recipe, missing, teacher, source, work=work, device=device)
        metrics: dict[str, float] = {}
        for name, student in students.items():
            values = json.loads((student.finished / METRICS).read_text())
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
            if rank() == 0:
                _publish(student.finished, out, name)
        if world_size() > 1:
            dist.barrier()
    return summarise(source, work, metrics)


def _publish(finished: Path, out: Path, name: str) -> None:
    folder = out / name
    folder.mkdir(parents=True)
    for file in ("backbone.safetensors", "backbone.json", "curves.csv"):
        shutil.copyfile(finished / file, folder / file)
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    shutil.copyfile(finished / "losses.png", figures / f"{name}-losses.png")


def _train_students(
    recipe: RecipeParams,
    students: dict[str, StudentRun],
    teacher: Path,
    source: Source,
    *,
    work: Path,
    device: torch.device,
) -> None:
    state, architecture = read_training(teacher)
    patch_size = architecture.model.patch_size
    check_sizes(recipe, patch_size)
    attention = recipe.efficiency.attention
    frozen = build_network(
        architecture.model, architecture.dino_head, architecture.ibot_head, attention=attention, recompute="none"
    )
    frozen.load_state_dict(part(state, "teacher."), strict=True)
    learning = Distillation(
        Distiller(frozen, recipe.loss, group_size=recipe.group_size),
        {name: _fresh(recipe, student.architecture) for name, student in students.items()},
    )
    logger.info("distill: %s from %d images, %d steps", ", ".join(students), len(source), recipe.num_steps)
    skipped = train(
        learning, recipe, source, patch_size=patch_size, work=work, fingerprint=fingerprint_of(work, source, None),
        device=device,
    )  # fmt: skip
    trained = full_state(learning.saved)
    rows = read_rows(work / CURVES)
    for name, student in students.items():
        if rank() != 0:
            break
        own = rows_of(rows, name)
        folder = student.finished
        about = {"stage": "distill", "student": name, "run": folder.name, "params": recipe.model_dump(mode="json")}
        folder.mkdir(parents=True, exist_ok=True)
        write_backbone(
            folder, part(trained, f"{name}.average.backbone."), student.architecture.model,
            image_size_px=recipe.crops.global_size_px,
            training=about,
        )  # fmt: skip
        write_csv(folder / "curves.csv", own)
        plot_losses(folder / "losses.png", own, list(SHOWN))
        write_json(folder / METRICS, final_metrics(own) | {"skipped_steps": float(skipped[name])})
    if world_size() > 1:
        dist.barrier()


def _fresh(recipe: RecipeParams, architecture: Architecture) -> DistilledStudent:
    # Anew for each, so that no student depends on which others there are; and never the teacher's own first weights.
    torch.manual_seed(integer_seed("students", recipe.seed, 0, 0))
    return DistilledStudent(
        architecture.model, architecture.dino_head, architecture.ibot_head,
        attention=recipe.efficiency.attention, recompute=recipe.efficiency.recompute,
    )  # fmt: skip
