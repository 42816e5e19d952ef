"""Which centroid a vector is nearest to, decided exactly: the same on every device, whatever block it stands in.

Vectors and centroids are multiples of 2^-24, as all float16 numbers are, and hardly longer than 1. A product of two has
at most 53 bits then, and so has a sum of them: float64 adds them without rounding, in any order. A first product in low
precision settles most vectors; those for which another centroid comes within its error bound go to the next precision.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinov2.curation.params import Precision

GRID = 2.0**24
TIERS = {"fp32": (torch.float32,), "bf16": (torch.bfloat16, torch.float32), "fp16": (torch.float16, torch.float32)}
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**28}  # products at once: what a CPU's cache holds, what fills a GPU


def on_grid(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Vectors of length 1 as multiples of 2^-24, in float32; float16 vectors stay as they are."""
    return vectors if vectors.dtype == torch.float16 else (vectors.double() * GRID).round().div(GRID).float()


class Tier(NamedTuple):
    """The centroids in one precision."""

    centroids: Tensor
    lost: Tensor
    """Largest length of what rounding took from a centroid."""


class Centroids:
    """Centroids (on the grid) in every precision that it takes to find the nearest."""

    def __init__(self, vectors: Float[Tensor, "k d"], precision: Precision) -> None:
        self.vectors = vectors.float()
        self._tiers = [_rounded(self.vectors, dtype) for dtype in (*TIERS[precision], torch.float64)]
        self._rows = max(1, CHUNK_NUMBERS[vectors.device.type] // len(vectors))

    def nearest(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Number of the nearest centroid of each vector on the grid; the first of equals."""
        return torch.cat([self._nearest(rows, 0) for rows in vectors.split(self._rows)])

    def rivals(self, vectors: Float[Tensor, "n d"], own: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
        """Rows of the vectors to which one of these centroids may be as near as their `own` one; some are not."""
        found = []
        for start in range(0, len(vectors), self._rows):
            rows = vectors[start : start + self._rows]
            products, error = _products(rows, self._tiers[0])
            known = (rows.float() * own[start : start + self._rows]).sum(1)
            close = products.amax(1) >= known - 2 * (error + _output_error(known, self._tiers[0]))
            found.append(close.nonzero()[:, 0] + start)
        return torch.cat(found)

    def _nearest(self, vectors: Tensor, number: int) -> Tensor:
        """By the tiers from `number` on."""
        products, error = _products(vectors, self._tiers[number])
        best = _argmax(products)
        if number == len(self._tiers) - 1:
            return best
        top = products.gather(1, best[:, None])[:, 0]
        second = products.scatter_(1, best[:, None], -torch.inf).amax(1)
        close = (second >= top - 2 * (error + _output_error(top, self._tiers[number]))).nonzero()[:, 0]
        if len(close):
            best[close] = self._nearest(vectors[close], number + 1)
        return best


def _rounded(vectors: Tensor, dtype: torch.dtype) -> Tier:
    rounded = vectors.to(dtype)
    return Tier(rounded, (vectors - rounded.float()).norm(dim=1).max())


def _products(vectors: Tensor, tier: Tier) -> tuple[Tensor, Tensor]:
    """Products with all centroids, at least float32, and a bound of their error less that of rounding the result."""
    rounded = _rounded(vectors.float(), tier.centroids.dtype)
    products = rounded.centroids @ tier.centroids.T
    summing = vectors.shape[1] * 2.0**-24  # of a float32 sum, all lower precisions are added up in
    error = 1.01 * (rounded.lost + tier.lost + summing)  # vectors are up to half a percent longer than 1
    return products.to(torch.promote_types(products.dtype, torch.float32)), error


def _output_error(product: Tensor, tier: Tier) -> Tensor:
    """Bound of the rounding of results near `product`."""
    return (product.abs() + 0.05) * (torch.finfo(tier.centroids.dtype).eps / 2)


def _argmax(products: Tensor) -> Tensor:
    """First largest of each row. NumPy's is many times faster on a CPU."""
    return torch.from_numpy(products.numpy().argmax(1)) if products.device.type == "cpu" else products.argmax(1)
