"""What both sides of benchmarks/train_step.py run, and the loop in which a side answers; imports nothing but torch.

The reference's package has our package's name, so each side is a process of its own. It is told to step by a line of
JSON on standard input, and answers by one on standard output: sides take turns, and the one that waits costs nothing.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GIB = 2**30
TEACHER_TEMPERATURE = 0.04
LR, LAST_LAYER_LR, WEIGHT_DECAY, MOMENTUM = 1e-4, 1e-4, 0.04, 0.994
CLIP_NORM = 3.0
LAYERSCALE = 0.1
"""Fresh networks have 1e-5, under which the loss would hardly depend on the blocks, and equal losses say little."""


@dataclass(frozen=True)
class Case:
    """One step's size; `dim`, `depth`, `heads` and `ffn` are those of `arch`, a name that both sides know."""

    arch: str
    dim: int
    depth: int
    heads: int
    ffn: str
    batch_size: int
    num_prototypes: int
    bottleneck_dim: int
    drop_path: float
    global_px: int
    local_px: int
    num_local: int
    device: str
    seed: int = 0
    patch_size: int = 14
    mask_probability: float = 0.5
    mask_ratio_min: float = 0.1
    mask_ratio_max: float = 0.5

    def text(self) -> str:
        """As a worker's argument."""
        return json.dumps(asdict(self))

    @property
    def grid(self) -> int:
        """Patches on a side of a global crop."""
        return self.global_px // self.patch_size


@dataclass(frozen=True)
class Batch:
    """What `write_batch` wrote."""

    global_crops: Tensor
    """[2 b 3 h w]"""
    local_crops: Tensor
    """[l b 3 hl wl]"""
    masks: Tensor
    """[2*b n], crop-major, True is masked."""


def write_batch(case: Case, masks: Tensor, path: Path) -> None:
    """Crops of noise with the given masks: a step's cost does not depend on what its images show."""
    generator = torch.Generator().manual_seed(case.seed)
    global_crops = torch.randn(2, case.batch_size, 3, case.global_px, case.global_px, generator=generator)
    local_crops = torch.randn(case.num_local, case.batch_size, 3, case.local_px, case.local_px, generator=generator)
    torch.save({"global_crops": global_crops, "local_crops": local_crops, "masks": masks}, path)


def read_batch(path: Path) -> Batch:
    """The batch in memory of this process."""
    return Batch(**torch.load(path))


@dataclass(frozen=True)
class Side:
    """One implementation, built."""

    step: Callable[[str], dict[str, float]]
    """A whole training step at a precision; returns the losses, as floats, so that all its work is done."""
    networks: list[nn.Module]
    """Those with weights that outlive a step."""
    num_trained: int
    """Weights that the optimiser has state for."""


def state_bytes(side: Side) -> int:
    """Weights of all networks and AdamW's two moments."""
    weights = sum(p.numel() * p.element_size() for network in side.networks for p in network.parameters())
    return weights + 2 * 4 * side.num_trained


def peak_bytes(device: str) -> int:
    """Most memory this process ever held: resident on a CPU, allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def serve(build: Callable[[Case, Path], Side]) -> None:
    """Build a side from the arguments (a case, a folder), then step once a line of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the implementation prints is no answer
    case, folder = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    torch.manual_seed(case.seed)
    before = peak_bytes(case.device)
    side = build(case, folder)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(before_bytes=before, state_bytes=state_bytes(side))
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        losses = _profiled(side, request["precision"]) if request["profile"] else side.step(request["precision"])
        answer(
            wall_s=time.perf_counter() - wall,
            cpu_s=time.process_time() - cpu,
            losses=losses,
            peak_bytes=peak_bytes(case.device),
        )


def _profiled(side: Side, precision: str) -> dict[str, float]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        losses = side.step(precision)
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=48), file=sys.stderr)
    return losses
