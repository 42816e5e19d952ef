"""Copy descriptors that need no weights: small colour thumbnails, whitened by the principal components of the pool.

A re-encoded or resized copy has almost the same thumbnail; whitening stops what all photographs share (bright above,
dark below) from making strangers similar. It stands a crop of a few percent, not flips, overlays or collages; for those
take SSCD.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from dinov2.curation.params import ThumbnailParams
from dinov2.params import InputError

PART_ROWS = 4096


def thumbnail(image: UInt8[np.ndarray, "h w 3"], size_px: int) -> Float[np.ndarray, " c"]:
    """Colours averaged over size_px x size_px equal areas, less each channel's mean, divided by their contrast.

    c = size_px * size_px * 3. An image of one colour gives zeros.
    """
    height, width = image.shape[:2]
    rows = _area_weights(height, size_px) @ image.reshape(height, -1).astype(np.float32)
    cells = _area_weights(width, size_px) @ rows.reshape(size_px, width, 3)
    cells = cells.astype(np.float64) - cells.mean(axis=(0, 1), dtype=np.float64)
    contrast = np.sqrt(np.mean(cells**2))
    return (cells / max(contrast, 0.5)).astype(np.float32).reshape(-1)  # 0.5 of 255: below it there is only rounding


@lru_cache(maxsize=256)
def _area_weights(length_px: int, size_px: int) -> NDArray[np.float32]:
    """Row i averages the i-th of size_px equal parts of length_px pixels; pixels on a border count by their share."""
    edges = np.linspace(0, length_px, size_px + 1)
    pixels = np.arange(length_px)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(shared, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class Moments(NamedTuple):
    """Sums over rows, in float64; those of several blocks are added."""

    num: int
    total: Float[np.ndarray, " c"]
    products: Float[np.ndarray, "c c"]


def moments(rows: Float[np.ndarray, "n c"]) -> Moments:
    """Of some thumbnails."""
    zero = Moments(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1])))
    return added((Moments(len(part), part.sum(axis=0), part.T @ part) for part in _parts(rows)), zero)


def added(blocks: Iterable[Moments], first: Moments) -> Moments:
    """The sum of all, in their order."""
    return reduce(lambda a, b: Moments(a.num + b.num, a.total + b.total, a.products + b.products), blocks, first)


def _parts(rows: Float[np.ndarray, "n c"]) -> Iterator[Float[np.ndarray, "_ c"]]:
    """The rows in float64, a few at a time."""
    for start in range(0, len(rows), PART_ROWS):
        yield rows[start : start + PART_ROWS].astype(np.float64)


class Whitening(NamedTuple):
    """What makes descriptors of thumbnails."""

    mean: Float[np.ndarray, " c"]
    projection: Float[np.ndarray, "c d"]


def fit(pool: Moments, params: ThumbnailParams) -> Whitening:
    """Whitening by the principal components of the pool's thumbnails.

    Directions are scaled by 1 / sqrt(variance + shrinkage * mean variance), so that faint ones, which are mostly
    compression noise, are not blown up. Raises InputError if there are fewer than two thumbnails.
    """
    if pool.num < 2:
        raise InputError(f"the pool has {pool.num} images, too few to whiten thumbnails by; crawl more pages")
    mean = pool.total / pool.num
    variance, directions = np.linalg.eigh(pool.products / pool.num - np.outer(mean, mean))
    chosen = np.argsort(-variance, kind="stable")[: params.dims]
    variance, directions = np.clip(variance[chosen], 0, None), directions[:, chosen]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(chosen))])
    return Whitening(mean, directions / np.sqrt(variance + params.shrinkage * variance.mean() + 1e-12))


def whiten(rows: Float[np.ndarray, "n c"], by: Whitening) -> Float[np.ndarray, "n d"]:
    """Whitened thumbnails; d = `dims`."""
    return np.concatenate([((part - by.mean) @ by.projection).astype(np.float32) for part in _parts(rows)])


class Thumbnails:
    """An encoder that needs no weights: `prepare` an image, `encode` some of them."""

    def __init__(self, params: ThumbnailParams) -> None:
        self.params = params

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " c"]:
        """The thumbnail."""
        return thumbnail(image, self.params.size_px)

    def encode(self, prepared: Sequence[Float[np.ndarray, " c"]]) -> Float[np.ndarray, "n c"]:
        """Thumbnails as rows."""
        return np.stack(prepared)
