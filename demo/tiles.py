"""Tiles of a photograph for three roles that share no pixel: pool, seeds and evaluation.

A photograph is divided into a grid of 4 x 4 cells. Its first and third row belong to the pool; in the other two, cells
belong to seeds and evaluation by turns. Every tile lies inside one region (a row of the pool, or one cell), so that
each role sees several parts of the photograph and none sees a pixel of another.

    p p p p
    s e s e
    p p p p
    e s e s
"""

import io
import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from PIL import Image, ImageChops, ImageStat

Role = Literal["pool", "seeds", "evaluation"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

GRID = 4
NUM_TILES: dict[Role, int] = {"pool": 28, "seeds": 8, "evaluation": 12}  # a photograph
SMALLEST_TILE_PX = 48  # in the photograph
SMALLEST_PHOTOGRAPH_PX = SMALLEST_TILE_PX * GRID  # shorter side of what can be cut
MAX_OVERLAP = 0.4  # intersection over union of two tiles of a role: above it they would be near-copies of each other
LEAST_DETAIL = 3.0  # root mean square of grey levels less their blur: below it a tile is sky or wall


class Tile(NamedTuple):
    """A part of a photograph, as a JPEG."""

    role: Role
    box: Box
    data: bytes


def regions(width_px: int, height_px: int) -> dict[Role, list[Box]]:
    """The rectangles of each role; no two of them overlap."""
    xs = [width_px * i // GRID for i in range(GRID + 1)]
    ys = [height_px * i // GRID for i in range(GRID + 1)]
    result: dict[Role, list[Box]] = {"pool": [], "seeds": [], "evaluation": []}
    for row in range(GRID):
        if row % 2 == 0:
            result["pool"].append((0, ys[row], width_px, ys[row + 1]))
            continue
        for column in range(GRID):
            role: Role = "seeds" if (row // 2 + column) % 2 == 0 else "evaluation"
            result[role].append((xs[column], ys[row], xs[column + 1], ys[row + 1]))
    return result


def cut_tiles(photograph: Image.Image, name: str) -> list[Tile]:
    """Tiles of all roles at several scales; `name` alone seeds their places. Fewer where the photograph is plain."""
    tiles: list[Tile] = []
    for role, rectangles in regions(*photograph.size).items():
        rng = random.Random(f"{name}/{role}")
        boxes: list[Box] = []
        for candidate in _candidates(rng, rectangles, NUM_TILES[role]):
            if len(boxes) == NUM_TILES[role]:
                break
            if all(overlap(candidate, box) <= MAX_OVERLAP for box in boxes) and _shows_something(photograph, candidate):
                boxes.append(candidate)
        tiles.extend(Tile(role, box, _encode(photograph.crop(box), rng)) for box in boxes)
    return tiles


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width_px = min(a[2], b[2]) - max(a[0], b[0])
    height_px = min(a[3], b[3]) - max(a[1], b[1])
    if width_px <= 0 or height_px <= 0:
        return 0.0
    shared = width_px * height_px
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _candidates(rng: random.Random, rectangles: list[Box], num_tiles: int) -> Iterator[Box]:
    """Boxes to try: large ones first, so that room is left for them, then small ones; rectangles by turns."""
    for attempt in range(40 * num_tiles):
        left, top, right, bottom = rectangles[attempt % len(rectangles)]
        share = rng.uniform(0.85, 1.0) if attempt < 8 * num_tiles else rng.uniform(0.5, 0.78)
        height_px = max(SMALLEST_TILE_PX, round(share * (bottom - top)))
        width_px = max(SMALLEST_TILE_PX, round(height_px * rng.uniform(0.8, 1.25)))
        height_px, width_px = min(height_px, bottom - top), min(width_px, right - left)
        x = rng.randint(left, right - width_px)
        y = rng.randint(top, bottom - height_px)
        yield (x, y, x + width_px, y + height_px)


def _shows_something(photograph: Image.Image, box: Box) -> bool:
    """Whether a tile holds more than a plain or slowly changing surface."""
    grey = photograph.crop(box).convert("L").resize((48, 48), Image.Resampling.BOX)
    blurred = grey.resize((6, 6), Image.Resampling.BOX).resize((48, 48), Image.Resampling.BILINEAR)
    return ImageStat.Stat(ImageChops.difference(grey, blurred)).rms[0] >= LEAST_DETAIL


def _encode(tile: Image.Image, rng: random.Random) -> bytes:
    """A JPEG of quality 85 to 92 with a shorter side of 96 to 144 px, enlarged at most twice."""
    shorter_px = min(rng.randint(96, 144), 2 * min(tile.size))
    scale = shorter_px / min(tile.size)
    size = (round(tile.width * scale), round(tile.height * scale))
    return encode_jpeg(tile.resize(size, Image.Resampling.LANCZOS), quality=rng.randint(85, 92))


def encode_jpeg(image: Image.Image, *, quality: int) -> bytes:
    """A baseline JPEG."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=quality)
    return stream.getvalue()
