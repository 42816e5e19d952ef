"""Pairs of rows above a cosine, of two blocks: screened by products of matrices, tile by tile, then computed exactly.

A *screen* encodes rows and keeps the pairs whose product of codes reaches its score. Whatever it lets pass is computed
again in float64, so that every screen, device and precision gives the same cosines; they differ in pairs not looked at.
Without a frame the screen is the cosine itself less the rounding of its arithmetic, and no pair is missed.

Cost a pair on one core with bf16 instructions, in ns: 0.8 with codes of 64 dimensions, 5 with all of 512; twice that in
fp32. A candidate costs 1000 ns, so those of codes are narrowed by the product of all dimensions: where a tile has many,
or on a GPU.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dinov2.curation.dedup.products import MARGIN, Engine, in_order
from dinov2.curation.dedup.rotation import encode
from dinov2.params import InputError

MAX_PAIRS = 2**26  # 1.3 GB
VERIFY_ROWS = 1024  # gathered at once: their rows stay in the cache


class Pairs(NamedTuple):
    """Pairs of rows, ordered by first, then second."""

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]
    cosine: Float[np.ndarray, " p"]
    """float32, rounded from a sum in float64 that no block size and no order of additions touches."""


class Screen(NamedTuple):
    """How candidates are found."""

    frame: Float[np.ndarray, "d e"] | None
    """Random directions by which rows are encoded; None: by their own numbers."""
    score: float
    """What the product of two codes must reach; not read where there is no frame."""


EXACT = Screen(None, 0.0)


def pairs_above(
    left: Float[np.ndarray, "n d"],
    right: Float[np.ndarray, "m d"] | None,
    min_cosine: float,
    screen: Screen,
    products: Engine,
) -> Pairs:
    """Pairs of `left` and `right` rows (None: of `left` among themselves, first < second) at or above `min_cosine`.

    Raises InputError if there are more than memory should hold.
    """
    found, num_pairs = [], 0
    for pairs in tiles_of_pairs(left, right, min_cosine, screen, products):
        found.append(pairs)
        num_pairs += len(pairs.first)
        if num_pairs > MAX_PAIRS:
            raise InputError(
                f"more than {MAX_PAIRS:,} pairs at or above {min_cosine:g} in one part of the join: strangers are "
                "taken for copies, or one image comes thousands of times; raise dedup.min_cosine, filter such images "
                "out, or lower dedup.block_rows"
            )
    return merged(found)


def tiles_of_pairs(
    left: Float[np.ndarray, "n d"],
    right: Float[np.ndarray, "m d"] | None,
    min_cosine: float,
    screen: Screen,
    products: Engine,
) -> Iterator[Pairs]:
    """The pairs of `pairs_above`, those of a tile at a time."""
    candidates = _candidates(left, right, min_cosine, screen, products)
    return _checked(left, left if right is None else right, candidates, min_cosine)


def _checked(
    left: NDArray[np.float32], right: NDArray[np.float32],
    candidates: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]], min_cosine: float,
) -> Iterator[Pairs]:  # fmt: skip
    """The pairs of each tile, found out while the next is multiplied."""
    with ThreadPoolExecutor(1) as checker:
        pending: Future[Pairs] | None = None
        for first, second in candidates:
            following = checker.submit(verified, left, right, first, second, min_cosine)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _candidates(
    left: NDArray[np.float32], right: NDArray[np.float32] | None, min_cosine: float, screen: Screen, products: Engine
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """What passes the screen, a tile of products at a time."""
    exact = min_cosine - products.margin
    score = exact if screen.frame is None else screen.score
    vectors = [products.prepare(left)] if right is None else [products.prepare(left), products.prepare(right)]
    codes = vectors if screen.frame is None else [
        products.prepare(encode(rows, screen.frame)) for rows in ([left] if right is None else [left, right])
    ]
    num_rows, num_columns = products.tile
    for row in range(0, len(left), num_rows):
        rows = slice(row, row + num_rows)
        for column in range(row if right is None else 0, len(left if right is None else right), num_columns):
            columns = slice(column, column + num_columns)
            places = products.hits(codes[0][rows], codes[-1][columns], score)
            if screen.frame is not None:
                places = products.narrowed(places, vectors[0][rows], vectors[-1][columns], exact)
            first, second = np.divmod(in_order(places), len(codes[-1][columns]))
            first, second = first + row, second + column
            if right is None:
                upper = first < second
                first, second = first[upper], second[upper]
            yield first, second


def verified(
    left: Float[np.ndarray, "n d"],
    right: Float[np.ndarray, "m d"],
    first: Int[np.ndarray, " p"],
    second: Int[np.ndarray, " p"],
    min_cosine: float,
) -> Pairs:
    """Those of the candidate pairs (row of `left`, row of `right`) at or above `min_cosine`, with exact cosines."""
    found = []
    for start in range(0, len(first), VERIFY_ROWS):
        rows, columns = first[start : start + VERIFY_ROWS], second[start : start + VERIFY_ROWS]
        one, other = left[rows], right[columns]
        near = np.flatnonzero(np.einsum("pd,pd->p", one, other) >= min_cosine - MARGIN)
        cosine = (one[near].astype(np.float64) * other[near]).sum(axis=1).astype(np.float32)
        near, cosine = near[cosine >= np.float32(min_cosine)], cosine[cosine >= np.float32(min_cosine)]
        found.append(Pairs(rows[near], columns[near], np.minimum(cosine, np.float32(1))))
    return merged(found)


def merged(parts: list[Pairs]) -> Pairs:
    """All pairs of `parts`, in order, each once."""
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((second, first))
    first, second, cosine = first[order], second[order], cosine[order]
    new = np.ones(len(first), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Pairs(first[new], second[new], cosine[new])
