"""Descriptors to measure dedup on: drawn ones, and thumbnails of varied copies of a folder's images.

Run:   python benchmarks/dedup_vectors.py FILE.npy --images DIR [DIR ...] [--rows 100000]     (minutes)

writes float16 rows of unit length with 512 dimensions: every JPEG below the folders, and crops, brightenings and
re-encodings of them until there are as many rows as asked for.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.embed.thumbnail import Thumbnails, fit, moments, whiten
from dinov2.curation.params import ThumbnailParams

DIMS = 512
COPY_SHARE = 0.15
WORKING_PX = 96


def drawn(kind: str, num: int) -> NDArray[np.float16]:
    """Unit rows, of which 15 % have a cosine of 0.5 to 0.98 with one of the others; seed 0.

    `unclustered`: directions of a Gaussian whose deviation falls fourfold over the dimensions. `clustered`: those about
    num / 50 centres of unequal size, with cosines of 0.35 to 0.6 within a cluster.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    num_copies = int(COPY_SHARE * num)
    deviation = np.linspace(1, 0.25, DIMS, dtype=np.float32)
    rows = _unit(rng.standard_normal((num, DIMS), np.float32) * deviation)
    if kind == "clustered":
        centres = _unit(rng.standard_normal((num // 50, DIMS), np.float32) * deviation)
        size = rng.pareto(1.5, len(centres)) + 1
        home = rng.choice(len(centres), num, p=size / size.sum())
        share = rng.uniform(0.6, 0.75, (num, 1)).astype(np.float32)
        for start in range(0, num, 65536):  # a block at a time: a million rows are 2 GB
            part = slice(start, start + 65536)
            rows[part] = _unit(share[part] * centres[home[part]] + np.sqrt(1 - share[part] ** 2) * rows[part])
    copy = rng.choice(num, num_copies, replace=False)
    original = rng.integers(0, num, num_copies)
    cosine = rng.uniform(0.5, 0.98, (num_copies, 1)).astype(np.float32)
    noise = _unit(rng.standard_normal((num_copies, DIMS), np.float32) * deviation)
    rows[copy] = _unit(cosine * rows[original] + np.sqrt(1 - cosine**2) * noise)
    return rows.astype(np.float16)


def thumbnails(folders: list[Path], num: int) -> NDArray[np.float16]:
    """Whitened thumbnails of all images and of varied copies of them, `num` in all; seed 0."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jpg"))]
    params = ThumbnailParams(kind="thumbnail", size_px=16, dims=DIMS, shrinkage=0.1)
    encoder = Thumbnails(params)
    rng = np.random.Generator(np.random.PCG64(0))
    encoded = np.empty((num, 768), np.float32)
    for place, copies in enumerate(np.array_split(np.arange(num), len(paths))):
        with Image.open(paths[place]) as image:
            image.draft("RGB", (2 * WORKING_PX, 2 * WORKING_PX))
            original = image.convert("RGB")
        for number, row in enumerate(copies):
            view = original if number == 0 else _varied(original, rng)
            encoded[row] = encoder.prepare(np.asarray(view.resize((WORKING_PX, WORKING_PX), Image.Resampling.BOX)))
    return _unit(whiten(encoded, fit(moments(encoded), params))).astype(np.float16)


def _varied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of up to 20 % a side, brightened or darkened, encoded again."""
    share = rng.uniform(0, 0.2, 4)
    width, height = image.size
    box = (share[0] * width, share[1] * height, (1 - share[2]) * width, (1 - share[3]) * height)
    small = image.resize((WORKING_PX, WORKING_PX), Image.Resampling.BILINEAR, box=box)
    scale = rng.uniform(0.8, 1.25)
    brighter = small.point([min(255, round(value * scale)) for value in range(256)] * 3)
    stream = io.BytesIO()
    brighter.save(stream, "JPEG", quality=int(rng.integers(30, 95)))
    return Image.open(stream).convert("RGB")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    np.save(options.file, thumbnails(options.images, options.rows))


if __name__ == "__main__":
    main()
