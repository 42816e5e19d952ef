"""Compiled blocks: the same numbers, and nothing compiled again once every shape was seen."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from dinov2.data.draws import integer_seed
from dinov2.data.masking import draw_masks, max_masked
from dinov2.data.params import MaskParams
from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.objective import Batch
from dinov2.train.parallelize import compile_blocks
from dinov2.train.params import LossParams
from dinov2.train.student_teacher import StudentTeacher

MODEL = ViTParams(
    patch_size=8, dim=16, depth=3, heads=2, ffn="swiglu", num_registers=1, layerscale=0.1, drop_path=0.3,
    image_size_px=64, interpolate_offset=0.1, interpolate_antialias=False,
)  # fmt: skip
HEAD = HeadParams(num_prototypes=16, hidden_dim=16, bottleneck_dim=8, num_layers=2)
LOSS = LossParams(
    dino_weight=1.0, ibot_weight=1.0, koleo_weight=0.1, centering="sinkhorn", sinkhorn_iterations=3,
    center_momentum=0.9, student_temperature=0.1,
)  # fmt: skip
MASKS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)


def totals(*, backend: str | CompileCounterWithBackend | None, num_steps: int = 4) -> list[float]:
    """Losses of some steps, each with masks and subsets of its own, with blocks compiled or not."""
    torch.manual_seed(0)
    pair = StudentTeacher(MODEL, HEAD, HEAD, LOSS, group_size=4, attention="sdpa").train()
    if backend is not None:
        compile_blocks(pair.student, backend=backend)
        compile_blocks(pair.teacher, backend=backend)
    found = []
    for step in range(num_steps):
        masks = draw_masks(MASKS, seed=0, step=step, group=0, num_images=4, grid=8).flatten(0, 1)
        bound = max_masked(MASKS, num_images=4, grid=8)
        batch = Batch(torch.randn(2, 4, 3, 64, 64), torch.randn(3, 4, 3, 32, 32), masks, max_masked=bound)
        seeds = [integer_seed("drop_path", 0, step, 0)]
        total, _ = pair.losses(batch, *pair.targets([batch], 0.05), group_seeds=seeds)
        total.backward()
        found.append(total.item())
    return found


def compare() -> dict[str, Any]:
    """What compiling changes; run in a process of its own, where no types are checked at run time."""
    counter = CompileCounterWithBackend("aot_eager")
    first = totals(backend=counter, num_steps=1)
    num_compiled = counter.frame_count
    return {
        "first": first,
        "compiled": totals(backend=counter),
        "plain": totals(backend=None),
        "compiled at first": num_compiled,
        "compiled later": counter.frame_count - num_compiled,
        "graph breaks": dict(counters["graph_break"]),
    }


def test_compiled_blocks_give_the_same_losses_and_are_compiled_once_a_shape(repository: Path) -> None:
    found = json.loads(subprocess.check_output([sys.executable, __file__], cwd=repository, text=True))
    assert found["compiled at first"] > 0
    assert found["compiled later"] == 0  # other masks, other subsets, another network of the same shapes
    assert found["graph breaks"] == {}
    assert found["compiled"][0] == found["first"][0]
    assert found["compiled"] == pytest.approx(found["plain"], rel=1e-5)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compare()))
