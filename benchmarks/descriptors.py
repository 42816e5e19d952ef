"""Cosines of copies and of strangers by thumbnails and by SSCD, as Markdown tables: what dedup's thresholds rest on.

Run:   OMP_NUM_THREADS=1 python benchmarks/descriptors.py --images DIR [DIR ...] --sscd FILE --input uint8_nhwc \
           --out benchmarks/results/descriptors.md
       (DIR: photographs in any folders; FILE: TorchScript or ONNX, or package:<distribution>/<file>; --input says
       whether it takes floats or bytes)

Some photographs are chosen by a fixed seed; of the first of them copies of each kind are made. A pair of a photograph
and its copy is a true pair, a pair of two photographs a pair of strangers; the latter hold the near-duplicates that a
data set has of its own, so their largest cosines are an upper bound. Thumbnails are whitened by all chosen photographs.
"""

import argparse
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dinov2.curation.embed.embedder import Encoder, lone_threads, one_thread, unit
from dinov2.curation.embed.network import Network
from dinov2.curation.embed.sscd import published
from dinov2.curation.embed.thumbnail import Thumbnails, fit, moments, whiten
from dinov2.curation.model_file import PACKAGE, in_package
from dinov2.curation.params import SSCDParams, ThumbnailParams
from dinov2.data.decode import decode_rgb
from dinov2.data.sources import SUFFIXES
from dinov2.records import sha256_file

THUMBNAIL = ThumbnailParams(kind="thumbnail", size_px=16, dims=128, shrinkage=0.1)  # as in params.yaml
THRESHOLDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.82, 0.85, 0.9)
RESIZES: dict[Literal["short_side", "square"], int] = {"short_side": 288, "square": 320}  # the published ones
BATCH = 16

Rows = NDArray[np.float32]


def encode(image: Image.Image, quality: int = 90) -> bytes:
    """As a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def cropped(image: Image.Image, draw: random.Random, share: float) -> Image.Image:
    """A part of `share` of each side, anywhere."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def with_text(image: Image.Image, draw: random.Random) -> Image.Image:
    """Two lines of large white letters with a black edge."""
    copy = image.copy()
    font = ImageFont.load_default(image.height / 8)
    for share in (0.15, 0.7):
        place = (draw.uniform(0.02, 0.2) * image.width, share * image.height)
        pen = ImageDraw.Draw(copy)
        pen.text(place, "WHEN MONDAY COMES", (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))
    return copy


def with_logo(image: Image.Image, draw: random.Random) -> Image.Image:
    """A disc with a letter, a quarter of the shorter side, in a corner."""
    copy = image.copy()
    side = min(image.size) // 4
    left, top = (draw.choice([4, length - side - 4]) for length in image.size)
    pen = ImageDraw.Draw(copy)
    pen.ellipse((left, top, left + side, top + side), fill=(200, 30, 30), outline=(255, 255, 255), width=3)
    pen.text((left + side * 0.3, top + side * 0.15), "Q", (255, 255, 255), ImageFont.load_default(side * 0.6))
    return copy


COPIES: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "JPEG at quality 30": lambda image, _: encode(image, 30),
    "half the size": lambda image, _: encode(image.resize((image.width // 2, image.height // 2))),
    "90 % of each side": lambda image, draw: encode(cropped(image, draw, 0.9)),
    "70 % of each side": lambda image, draw: encode(cropped(image, draw, 0.7)),
    "flipped": lambda image, _: encode(ImageOps.mirror(image)),
    "grey": lambda image, _: encode(image.convert("L")),
    "text laid over": lambda image, draw: encode(with_text(image, draw)),
    "logo laid over": lambda image, draw: encode(with_logo(image, draw)),
}


def chosen_photographs(folders: Sequence[Path], num: int) -> list[bytes]:
    """`num` image files below `folders`, the same number of each, by a fixed seed."""
    found = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        found.append(random.Random(0).sample(files, min(num // len(folders), len(files))))
    return [path.read_bytes() for turn in zip(*found, strict=False) for path in turn]


def copies(photographs: Sequence[bytes]) -> dict[str, list[bytes]]:
    """Of each kind a copy of each photograph."""
    images = [Image.fromarray(decode_rgb(data)) for data in photographs]
    return {kind: [make(image, random.Random(i)) for i, image in enumerate(images)] for kind, make in COPIES.items()}


def encoded(encoder: Encoder, files: Sequence[bytes]) -> Rows:
    """A row a file."""

    def batch(start: int) -> Rows:
        return encoder.encode([encoder.prepare(decode_rgb(data)) for data in files[start : start + BATCH]])

    num_threads = torch.get_num_threads()
    with one_thread(), lone_threads(num_threads) as threads:
        return np.concatenate(list(threads.map(batch, range(0, len(files), BATCH))))


def describe(
    encoder: Encoder, photographs: list[bytes], by_kind: dict[str, list[bytes]]
) -> tuple[Rows, dict[str, Rows]]:
    """Descriptors of unit length of the photographs and of the copies."""
    rows = encoded(encoder, photographs)
    others = {kind: encoded(encoder, files) for kind, files in by_kind.items()}
    if isinstance(encoder, Thumbnails):
        whitening = fit(moments(rows), THUMBNAIL)
        rows, others = whiten(rows, whitening), {kind: whiten(its, whitening) for kind, its in others.items()}
    return unit(rows)[0], {kind: unit(its)[0] for kind, its in others.items()}


def tables(name: str, rows: Rows, by_kind: dict[str, Rows]) -> Iterator[str]:
    """Quantiles of the cosines, and what each threshold finds."""
    true = {kind: (rows[: len(its)] * its).sum(axis=1) for kind, its in by_kind.items()}
    strangers = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    yield f"## {name}"
    yield ""
    yield "| pairs | number | least | 1 % | 5 % | median | 95 % | 99 % | 99.9 % | most |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for kind, cosines in {**true, "strangers": strangers}.items():
        quantiles = np.quantile(cosines, [0, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999, 1])
        yield f"| {kind} | {len(cosines)} | " + " | ".join(f"{value:.3f}" for value in quantiles) + " |"
    yield ""
    yield f"| copies found % at | {' | '.join(f'{threshold:g}' for threshold in THRESHOLDS)} |"
    yield "|---|" + "---|" * len(THRESHOLDS)
    for kind, cosines in true.items():
        found = (100 * np.mean(cosines >= threshold) for threshold in THRESHOLDS)
        yield f"| {kind} | " + " | ".join(f"{value:.1f}" for value in found) + " |"
    taken = (1e6 * np.mean(strangers >= threshold) for threshold in THRESHOLDS)
    yield "| strangers taken, of a million pairs | " + " | ".join(f"{value:.0f}" for value in taken) + " |"
    yield ""


def encoders(file: str, takes: str) -> Iterator[tuple[str, Encoder]]:
    """Each way to describe, with its name."""
    yield "thumbnails (16 x 16, 128 components, shrinkage 0.1)", Thumbnails(THUMBNAIL)
    path = in_package(file, "--sscd") if file.startswith(PACKAGE) else Path(file)
    about: dict[str, Any] = {"kind": "sscd", "path": file, "sha256": sha256_file(path), "input": takes}
    for resize, size_px in RESIZES.items():
        params = published(SSCDParams(**about, resize=resize, size_px=size_px))
        network = Network(params, device=torch.device("cpu"), turn=nullcontext(), where="--sscd")
        yield f"SSCD ({path.name}, {resize} {size_px})", network


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--sscd", required=True)
    parser.add_argument("--input", choices=["float_nchw", "uint8_nhwc"], required=True)
    parser.add_argument("--num", type=int, default=1000, help="photographs (default: %(default)s)")
    parser.add_argument("--num-copied", type=int, default=250, help="of which copies are made (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    photographs = chosen_photographs(options.images, options.num)
    by_kind = copies(photographs[: options.num_copied])
    names = ", ".join(folder.name for folder in options.images)
    command = f"python benchmarks/descriptors.py --images DIR --sscd {options.sscd} --input {options.input}"
    lines = [f"Printed by `{command}`: {len(photographs)} photographs of {names}, copies of {options.num_copied}.", ""]
    for name, encoder in encoders(options.sscd, options.input):
        lines += tables(name, *describe(encoder, photographs, by_kind))
        print(f"{name}: done", file=sys.stderr)
    options.out.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
