"""Images a second and core of our augmentation and of the reference's, as a Markdown table.

Run:   python benchmarks/data_path.py --reference CHECKOUT --torchvision FOLDER [--images FOLDER]
       where CHECKOUT is a checkout of facebookresearch/dinov2 and FOLDER was made by
       pip install --no-deps --target FOLDER torchvision

Both sides make batches of 2 x 224 + 8 x 98 crops and their masks, with the paper's probabilities, from the same image
files in memory, each in a process of its own on the same core, in turns; seconds are the process's CPU time. The
reference's side is what a worker of its loader does: decode with Pillow, DataAugmentationDINO, collate. Ours is what a
thread of our loader does: order, draws, decode, crops, masks, and (where it says so) colours, blur and normalisation.

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
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
import torch
from PIL import Image

from dinov2.data.collate import BadSamples, Collator, finish
from dinov2.data.params import CropParams, MaskParams
from dinov2.data.sources import SUFFIXES
from dinov2.heap import keep_heap

CROPS = CropParams(
    global_size_px=224, global_scale=(0.32, 1.0), local_size_px=98, local_scale=(0.05, 0.32), num_local=8,
    blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2, solarize_probability=0.2,
)  # fmt: skip
MASKS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)
REFERENCE = "reference"
EVERYTHING = "ours, everything on the CPU"
BARS = {EVERYTHING: 5.0, "ours, colours and blur left to the device": 12.0}
BATCH = 32
PATCH_PX = 14
STATE: dict[str, Callable[[int], object]] = {}  # of a way's process


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


def reference_work(files: list[bytes], checkout: Path, torchvision: Path) -> Callable[[int], object]:
    """What a loader's worker of the reference does in a round, with its own code, as its training calls it."""
    for name in ("nms(Tensor dets, Tensor scores, float threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float threshold) -> Tensor"):  # fmt: skip
        torch.library.define(f"torchvision::{name.partition('(')[0]}", name[name.index("(") :])
    for name in [name for name in sys.modules if name.split(".")[0] == "dinov2"]:
        del sys.modules[name]  # ours, of the same name; this process needs it no more
    sys.path[:0] = [str(checkout), str(torchvision)]
    modules = [importlib.import_module(f"dinov2.data.{name}") for name in ("augmentations", "collate", "masking")]
    assert all(str(checkout) in str(module.__file__) for module in modules), modules
    augmentations, collate, masking = modules
    augment = augmentations.DataAugmentationDINO(
        CROPS.global_scale, CROPS.local_scale, CROPS.num_local,
        global_crops_size=CROPS.global_size_px, local_crops_size=CROPS.local_size_px,
    )  # fmt: skip
    grid = CROPS.global_size_px // PATCH_PX
    generator = masking.MaskingGenerator(input_size=(grid, grid), max_num_patches=0.5 * grid * grid)

    def work(number: int) -> None:
        for first in range(0, len(files), BATCH):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files[first : first + BATCH]]
            collate.collate_data_and_cast(
                [(augment(image), ()) for image in images], mask_ratio_tuple=(MASKS.ratio_min, MASKS.ratio_max),
                mask_probability=MASKS.probability, dtype=torch.half, n_tokens=grid * grid, mask_generator=generator,
            )  # fmt: skip

    return work


def our_work(files: list[bytes], *, colours: bool) -> Callable[[int], object]:
    """What a thread of our loader does in a round."""
    keep_heap()  # as the training loop does
    folder = TemporaryDirectory()
    collator = Collator(
        Images(files), CROPS, MASKS, seed=0, batch_size=BATCH, group_size=BATCH, patch_size=PATCH_PX, rank=0,
        world_size=1, bad_samples=BadSamples(Path(folder.name) / "bad.jsonl"),
    )  # fmt: skip
    num_steps = len(files) // BATCH

    def work(number: int) -> None:
        for step in range(number * num_steps, (number + 1) * num_steps):
            raw = collator(step)
            if colours:
                finish(raw, torch.device("cpu"))
        assert Path(folder.name).exists()  # keeps it for as long as the work may be done

    return work


def prepare(name: str, files: list[bytes], given: argparse.Namespace) -> None:
    """In a way's own process: one core, one thread, its work at hand."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if name == REFERENCE:
        STATE["work"] = reference_work(files, given.reference, given.torchvision)
    else:
        STATE["work"] = our_work(files, colours=name == EVERYTHING)


def seconds_of_round(number: int) -> float:
    """CPU seconds of the work of one round, in the way's own process."""
    started = time.process_time()
    STATE["work"](number)
    return time.process_time() - started


def measure(files: list[bytes], given: argparse.Namespace) -> dict[str, list[float]]:
    """Images a CPU second of every way in every round; every way sees every image once in a round."""
    rates: dict[str, list[float]] = {REFERENCE: [], **{name: [] for name in BARS}}
    with ExitStack() as stack:
        context = get_context("spawn")
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, mp_context=context, initializer=prepare, initargs=(name, files, given))
            )
            for name in rates
        }
        for number in range(given.rounds + 1):
            for name, process in processes.items():
                rate = len(files) / process.submit(seconds_of_round, number).result()
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
    files = read_images(given.images, given.num_images)
    files = (files * BATCH)[: max(1, len(files) // BATCH) * BATCH]  # whole batches
    rates = measure(files, given)
    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    width, height = (statistics.median(side) for side in zip(*sizes, strict=True))
    from_where = given.images.name if given.images is not None else "scikit-image"
    text = "\n".join(
        [
            f"One core of {processor()}; Python {platform.python_version()}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Pillow {PIL.__version__}; {len(files)} images of {from_where}, median "
            f"{width:.0f}x{height:.0f}, batches of {BATCH}, {given.rounds} rounds in turns, CPU time.",
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
