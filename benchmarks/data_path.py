"""Images a second and core of our augmentation and of the reference's, as a Markdown table.

Run:   python benchmarks/data_path.py --reference CHECKOUT --torchvision FOLDER [--images FOLDER]
       where CHECKOUT is a checkout of facebookresearch/dinov2 and FOLDER was made by
       pip install --no-deps --target FOLDER torchvision

Both sides make 2 x 224 + 8 x 98 crops with the paper's probabilities from the same image files in memory, on one core,
in turns; seconds are the process's CPU time. The reference's side is what its loader does with a sample: decode with
Pillow, then DataAugmentationDINO, up to normalised floats. Ours is what the trainer does for a batch: order, draws,
decode, crops, masks, and (where it says so) colours, blur and normalisation.

torchvision is the reference's, not ours: its wheel expects a CUDA build of torch, so two of its operators are declared
here, as they are never called. Without --images the photographs of scikit-image are used.
"""

import argparse
import importlib
import io
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
import torch
from PIL import Image

from dinov2.data.collate import BadSamples, Collator, finish
from dinov2.data.params import CropParams, MaskParams
from dinov2.data.sources import SUFFIXES

CPU = torch.device("cpu")
CROPS = CropParams(
    global_size_px=224, global_scale=(0.32, 1.0), local_size_px=98, local_scale=(0.05, 0.32), num_local=8,
    blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2, solarize_probability=0.2,
)  # fmt: skip
MASKS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)
REFERENCE = "reference"
BARS = {"ours, everything on the CPU": 5.0, "ours, colours and blur left to the device": 12.0}
BATCH = 32


class Images:
    """Image files in memory, as a source."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> bytes:
        return self.files[i]

    def id(self, i: int) -> str:
        return str(i)

    def label(self, i: int) -> str | None:
        return None

    def fingerprint(self) -> str:
        return ""


def read_images(folder: Path | None, count: int) -> list[bytes]:
    """`count` files below `folder`, chosen at random by a fixed seed, or scikit-image's photographs as JPEGs."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [path.read_bytes() for path in random.Random(0).sample(paths, min(count, len(paths)))]
    import skimage.data

    files = []
    for name in ("astronaut", "cat", "coffee", "rocket"):
        buffer = io.BytesIO()
        Image.fromarray(getattr(skimage.data, name)()).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def reference_augmentation(checkout: Path, torchvision: Path) -> Callable[[Image.Image], object]:
    """The reference's DataAugmentationDINO, as its training makes it."""
    for name in ("nms(Tensor dets, Tensor scores, float threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float threshold) -> Tensor"):  # fmt: skip
        torch.library.define(f"torchvision::{name.partition('(')[0]}", name[name.index("(") :])
    sys.path.insert(0, str(torchvision))
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "dinov2"}
    sys.path.insert(0, str(checkout))
    try:
        module = importlib.import_module("dinov2.data.augmentations")
        assert str(checkout) in str(module.__file__), module.__file__
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.split(".")[0] == "dinov2"]:
            del sys.modules[name]
        sys.modules.update(ours)
    return module.DataAugmentationDINO(
        CROPS.global_scale, CROPS.local_scale, CROPS.num_local,
        global_crops_size=CROPS.global_size_px, local_crops_size=CROPS.local_size_px,
    )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(files: list[bytes], reference: Callable[[Image.Image], object], rounds: int) -> dict[str, list[float]]:
    """Images a CPU second of every way in every round; all ways see every image once in a round."""
    with TemporaryDirectory() as folder:
        collator = Collator(
            Images(files), CROPS, MASKS, seed=0, batch_size=BATCH, group_size=BATCH, patch_size=14, rank=0,
            world_size=1, bad_samples=BadSamples(Path(folder) / "bad.jsonl"),
        )  # fmt: skip
        num_steps = len(files) // BATCH

        def theirs(number: int) -> None:
            for data in files[: num_steps * BATCH]:
                reference(Image.open(io.BytesIO(data)).convert("RGB"))

        def bytes_only(number: int) -> None:
            for step in range(num_steps):
                collator(number * num_steps + step)

        def everything(number: int) -> None:
            for step in range(num_steps):
                finish(collator(number * num_steps + step), CPU)

        ways = dict(zip((REFERENCE, *BARS), (theirs, everything, bytes_only), strict=True))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                rate = num_steps * BATCH / seconds(lambda way=way, number=number: way(number))
                if number > 0:  # the first round warms up
                    rates[name].append(rate)
    return rates


def table(rates: dict[str, list[float]]) -> list[str]:
    """Rows of the table; ratios are of rounds, each way to the reference beside it in time."""
    lines = [
        "| what | images/s a core: median | least | greatest | times the reference: median | least | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(found, rates[REFERENCE], strict=True)]
        numbers = f"{statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f}"
        bar = f"{BARS[name]:.0f}" if name in BARS else ""
        lines.append(f"| {name} | {numbers} | {statistics.median(ratios):.1f} | {min(ratios):.1f} | {bar} |")
    return lines


def main() -> int:
    """Measure, print, and write the table; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the reference")
    parser.add_argument("--torchvision", type=Path, required=True, help="folder with its torchvision")
    parser.add_argument("--images", type=Path, help="folder of images; without it, scikit-image's photographs")
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    files = read_images(given.images, given.num_images)
    rates = measure(files, reference_augmentation(given.reference, given.torchvision), given.rounds)
    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    width, height = (statistics.median(side) for side in zip(*sizes, strict=True))
    from_where = given.images.name if given.images is not None else "scikit-image"
    text = "\n".join(
        [
            f"One core of {processor()}; Python {platform.python_version()}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Pillow {PIL.__version__}; {len(files)} images of {from_where}, median "
            f"{width:.0f}x{height:.0f}, batches of {BATCH}, {given.rounds} interleaved rounds, CPU time.",
            "",
            *table(rates),
            "",
        ]
    )
    print(text)
    command = "python benchmarks/data_path.py --reference ... --torchvision ... --images ..."
    Path("benchmarks/results/data_path.md").write_text(f"Printed by `{command}`.\n\n{text}")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return 0 if all(medians[name] >= bar * medians[REFERENCE] for name, bar in BARS.items()) else 1


def processor() -> str:
    """The processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
