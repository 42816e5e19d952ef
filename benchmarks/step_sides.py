"""Starts the two sides of benchmarks/train_step.py and benchmarks/memory.py, and speaks with them."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from step_case import Case, write_batch

from dinov2.data.masking import draw_masks
from dinov2.data.params import MaskParams
from dinov2.models.params import ARCHITECTURES
from dinov2.params import InputError

HERE = Path(__file__).parent
SIDES = {"reference": HERE / "reference_step.py", "ours": HERE / "our_step.py"}

KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""glibc keeps freed memory: it maps large tensors anew each time otherwise, and the kernel fills every page with 0."""


@dataclass(frozen=True)
class Step:
    """What a side answers to a step."""

    wall_s: float
    cpu_s: float
    losses: dict[str, float]
    peak_bytes: int


class Worker:
    """One side in a process of its own, that steps when it is asked; a context, at whose end it stops."""

    def __init__(self, side: str, case: Case, folder: Path, args: argparse.Namespace) -> None:
        """The reference must be the first to start on a new `folder`: it writes the weights that ours reads."""
        own = [HERE.parent, os.environ.get("PYTHONPATH")]
        paths = [args.reference.resolve(), args.packages] if side == "reference" else own
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path)}
        if args.keep_heap:
            environment |= KEEP_HEAP
        command = [sys.executable, str(SIDES[side]), case.text(), str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.side = side
        ready = self._answer()
        self.before_bytes: int = ready["before_bytes"]
        self.state_bytes: int = ready["state_bytes"]

    def step(self, precision: str, *, profile: bool = False) -> Step:
        """One training step; a profile goes to standard error."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"precision": precision, "profile": profile}) + "\n")
        self.process.stdin.flush()
        return Step(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"the {self.side} side ended with exit code {self.process.wait()}; its error is above")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks take."""
    parser.add_argument("--reference", type=Path, required=True, help="checkout of facebookresearch/dinov2 (b8931f7)")
    parser.add_argument("--packages", type=Path, help="folder with omegaconf, if it is not installed")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES))
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--prototypes", type=int)
    parser.add_argument("--drop-path", type=float, nargs="+")
    parser.add_argument("--keep-heap", action="store_true", help="both sides: glibc keeps freed memory for itself")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises InputError if there is no checkout."""
    if not (args.reference / "dinov2" / "train" / "ssl_meta_arch.py").exists():
        raise InputError(f"--reference {args.reference} is no checkout of facebookresearch/dinov2; clone it there")


def make_case(
    arch: str, *, batch_size: int, num_prototypes: int, drop_path: float, device: str, global_px: int, local_px: int
) -> Case:
    """A case of a known architecture, 8 local crops."""
    size = ARCHITECTURES[arch]
    return Case(
        arch=arch, dim=size.dim, depth=size.depth, heads=size.heads, ffn=size.ffn, batch_size=batch_size,
        num_prototypes=num_prototypes, bottleneck_dim=256, drop_path=drop_path, global_px=global_px, local_px=local_px,
        num_local=8, device=device,
    )  # fmt: skip


def prepare(case: Case, folder: Path) -> None:
    """The batch with masks as our data path draws them."""
    params = MaskParams(
        probability=case.mask_probability, ratio_min=case.mask_ratio_min, ratio_max=case.mask_ratio_max
    )
    masks = draw_masks(params, seed=case.seed, step=0, group=0, num_images=case.batch_size, grid=case.grid)
    write_batch(case, masks.flatten(0, 1), folder / "batch.pt")
