"""Our side of benchmarks/train_step.py: the training loop's own step. Started by it, not by hand."""

import os
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch
from step_case import (
    CLIP_NORM,
    LAST_LAYER_LR,
    LAYERSCALE,
    LR,
    MOMENTUM,
    TEACHER_TEMPERATURE,
    WEIGHT_DECAY,
    Case,
    Side,
    read_batch,
    serve,
)

from dinov2.data.masking import max_masked
from dinov2.heap import keep_heap
from dinov2.params import read_yaml, validate
from dinov2.train.learning import Pretraining
from dinov2.train.objective import Batch
from dinov2.train.parallelize import parallelize
from dinov2.train.schedules import StepValues
from dinov2.train.step import build_optimisers, take_step
from dinov2.train.student_teacher import StudentTeacher
from tasks.pretrain import PretrainParams

RECOMPUTE = os.environ.get("RECOMPUTE", "pointwise")  # or none, block
PRESET = Path(__file__).parent.parent / "presets" / "paper-vitl.yaml"


def train_params(case: Case, precision: str) -> PretrainParams:
    """The preset's `pretrain` section with the case's sizes: what the benchmark does not name is as in a real run."""
    values = cast(dict[str, Any], read_yaml(PRESET)["pretrain"])
    values["model"] |= {
        "patch_size": case.patch_size, "dim": case.dim, "depth": case.depth, "heads": case.heads, "ffn": case.ffn,
        "layerscale": LAYERSCALE, "drop_path": case.drop_path, "image_size_px": case.global_px,
    }  # fmt: skip
    for head in ("dino_head", "ibot_head"):
        values[head] |= {"num_prototypes": case.num_prototypes, "bottleneck_dim": case.bottleneck_dim}
    values["crops"] |= {
        "global_size_px": case.global_px, "local_size_px": case.local_px, "num_local": case.num_local
    }  # fmt: skip
    values["optim"] |= {"clip_norm": CLIP_NORM}
    values["efficiency"] |= {"precision": precision, "compile": case.device == "cuda", "recompute": RECOMPUTE}
    values |= {"batch_size": case.batch_size, "group_size": case.batch_size}
    return validate(PretrainParams, values, where="benchmark")


def build(case: Case, folder: Path) -> Side:
    """The student and its teacher with the weights in `folder`, and the loop's step over them."""
    device = torch.device(case.device)
    keep_heap()  # as the loop does
    recipes = {precision: train_params(case, precision) for precision in ("fp32", "bf16")}
    recipe = recipes["bf16"]
    pair = StudentTeacher(
        recipe.model, recipe.dino_head, recipe.ibot_head, recipe.loss,
        group_size=recipe.group_size, attention=recipe.efficiency.attention, recompute=recipe.efficiency.recompute,
    )  # fmt: skip
    if (folder / "weights.pt").exists():
        weights = torch.load(folder / "weights.pt", mmap=True)
        pair.student.load_state_dict(weights, strict=True)
        pair.teacher.load_state_dict(weights, strict=True)
    learning = Pretraining(pair)
    parallelize(learning.networks(), recipe.efficiency, device)
    pair.train()
    optimisers = {"": build_optimisers(pair.student, recipe, device)}
    read = read_batch(folder / "batch.pt")
    most_masked = 0
    if recipe.efficiency.compile:
        most_masked = max_masked(recipe.masks, num_images=case.batch_size, grid=case.grid)
    batch = Batch(read.global_crops.to(device), read.local_crops.to(device), read.masks, most_masked)
    values = StepValues(
        lr=LR, backbone_lr=LR, last_layer_lr=LAST_LAYER_LR, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM,
        teacher_temperature=TEACHER_TEMPERATURE,
    )  # fmt: skip

    def step(precision: str) -> dict[str, float]:
        outcome = take_step(
            learning, recipes[precision], batch,
            group_seeds=[case.seed], values=values, optimisers=optimisers, device=device,
        )[""]  # fmt: skip
        losses = dict(zip(outcome.names, outcome.values.tolist(), strict=True))
        assert all(isfinite(value) for value in losses.values()), losses
        return {name: losses[name] for name in ("dino_local", "dino_global", "ibot", "koleo", "total")}

    return Side(step, [pair], sum(p.numel() for p in pair.student.parameters()))


if __name__ == "__main__":
    serve(build)
