"""A join that compares rows only where they are near: each row belongs to one cell and visits a few.

Cells are those of the nearest of some rows, drawn at random. A pair is found if one of its rows visits the cell that
the other belongs to. Cells are found in float32 on the CPU; only the join runs on a GPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dinov2.curation.dedup.join import EXACT, Pairs, merged, pairs_above
from dinov2.curation.dedup.pairs import save_array
from dinov2.curation.dedup.products import Engine
from dinov2.curation.dedup.recall import sampled_rows
from dinov2.curation.descriptors import Rows, Stored

NUM_VISITS = (1, 2, 4, 8, 16, 32, 64)
LOAD_ROWS = 4096
ASSIGN_ROWS = 4096


class Visits(NamedTuple):
    """Where the rows of a block go."""

    cells: Int[np.ndarray, "n v"]
    """Cells that a row visits, nearest first: the first is its own."""
    order: Int[np.ndarray, " nv"]
    """Visits (row * v + place) sorted by cell."""
    bounds: Int[np.ndarray, " k_plus_1"]
    """Where each cell's visits start in `order`."""


class StoredVisits(NamedTuple):
    """Visits on disk."""

    cells: Stored
    order: Stored
    bounds: Stored


class AllVisits(NamedTuple):
    """Of all blocks, read from disk where needed."""

    blocks: list[StoredVisits]
    starts: list[int]
    """Number of each block's first row."""


def choose_centroids(rows: Rows, seed: int) -> Float[np.ndarray, "k d"]:
    """About 4 sqrt(n) rows, a power of two."""
    num = 2 ** round(np.log2(4 * np.sqrt(len(rows))))
    return rows.take(sampled_rows(len(rows), num, seed + 3))


def nearest_cells(
    vectors: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"], num_visits: int
) -> Int[np.ndarray, "n v"]:
    """The nearest centroids of each row, nearest first."""
    found = np.empty((len(vectors), num_visits), np.int32)
    for start in range(0, len(vectors), ASSIGN_ROWS):
        cosine = vectors[start : start + ASSIGN_ROWS] @ centroids.T
        if num_visits < len(centroids):
            chosen = np.argpartition(-cosine, num_visits - 1, axis=1)[:, :num_visits]
        else:
            chosen = np.tile(np.arange(len(centroids)), (len(cosine), 1))
        order = np.argsort(-np.take_along_axis(cosine, chosen, axis=1), axis=1, kind="stable")
        found[start : start + ASSIGN_ROWS] = np.take_along_axis(chosen, order, axis=1)
    return found


def visits_needed(
    left: Float[np.ndarray, "p d"], right: Float[np.ndarray, "p d"], centroids: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " p"]:
    """The least number of visits by which each pair of rows is found; beyond the largest of NUM_VISITS: that + 1."""
    most = min(NUM_VISITS[-1], len(centroids))
    one, other = (nearest_cells(rows, centroids, most) for rows in (left, right))
    needed = np.full(len(left), most + 1)
    for visitor, host in ((one, other), (other, one)):
        meets = visitor == host[:, :1]
        needed = np.minimum(needed, np.where(meets.any(axis=1), meets.argmax(axis=1) + 1, most + 1))
    return needed


def expected_load(rows: Rows, centroids: Float[np.ndarray, "k d"], seed: int) -> dict[int, float]:
    """Twice the share of all ordered pairs that a join compares, for each number of visits; from some rows."""
    most = min(NUM_VISITS[-1], len(centroids))
    some = nearest_cells(rows.take(sampled_rows(len(rows), LOAD_ROWS, seed + 4)), centroids, most)
    owned = np.bincount(some[:, 0], minlength=len(centroids)) / len(some)
    shares = np.cumsum(owned[some].mean(axis=0))
    return {num: 2 * float(shares[num - 1]) for num in NUM_VISITS if num <= most}


def block_visits(vectors: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"], num_visits: int) -> Visits:
    """Where the rows of a block go."""
    found = nearest_cells(vectors, centroids, num_visits)
    order = np.argsort(found.ravel(), kind="stable")
    bounds = np.searchsorted(found.ravel()[order], np.arange(len(centroids) + 1))
    return Visits(found, order, bounds)


def save_visits(folder: Path, block: int, visits: Visits) -> None:
    """Write the visits of a block."""
    for name, array in visits._asdict().items():
        save_array(folder / f"{block:06d}-{name}.npy", array)


def load_visits(folder: Path, num_blocks: int, block_rows: int) -> AllVisits:
    """The visits of all blocks, read from disk where they are asked for."""
    paths = [[folder / f"{block:06d}-{name}.npy" for name in Visits._fields] for block in range(num_blocks)]
    blocks = [StoredVisits(*(Stored(path) for path in block)) for block in paths]
    return AllVisits(blocks, [block * block_rows for block in range(num_blocks)])


def join_cells(
    group: range, rows: Rows, visits: AllVisits, min_cosine: float, products: Engine, *, at_once: int
) -> Pairs:
    """Pairs (first < second) of the rows of some cells with each other and with visitors, `at_once` rows a side.

    A pair whose rows visit each other's cells is left to the cell with the smaller number.
    """
    num_cells = len(visits.blocks[0].bounds) - 1
    found = []
    for cell in range(group.start, min(group.stop, num_cells)):
        own, visiting = _of_cell(cell, visits)
        for members, vectors in _pieces(rows, own, at_once):
            found.append(_named(pairs_above(vectors, None, min_cosine, EXACT, products), members, members))
            for others, strange in _pieces(rows, own[own > members[-1]], at_once):
                found.append(_named(pairs_above(vectors, strange, min_cosine, EXACT, products), members, others))
            for visitors, strange in _pieces(rows, visiting, at_once):
                pairs = _named(pairs_above(vectors, strange, min_cosine, EXACT, products), members, visitors)
                home = _cells_of(pairs.second, visits)[:, :1]
                elsewhere = (home[:, 0] < cell) & (_cells_of(pairs.first, visits) == home).any(axis=1)
                found.append(Pairs(*(column[~elsewhere] for column in pairs)))
    pairs = merged(found)
    first, second = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    return merged([Pairs(first, second, pairs.cosine)])


def _of_cell(cell: int, visits: AllVisits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that belong to a cell, and rows that only visit it, in order."""
    own, visiting = [], []
    for block, start in zip(*visits, strict=True):
        low, high = block.bounds[cell : cell + 2].tolist()
        row, place = np.divmod(block.order[low:high], block.cells.shape[1])
        own.append(np.sort(row[place == 0]) + start)
        visiting.append(np.sort(row[place > 0]) + start)
    return np.concatenate(own), np.concatenate(visiting)


def _pieces(
    rows: Rows, index: NDArray[np.int64], at_once: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for start in range(0, len(index), at_once):
        piece = index[start : start + at_once]
        yield piece, rows.take(piece)


def _named(pairs: Pairs, first: NDArray[np.int64], second: NDArray[np.int64]) -> Pairs:
    return Pairs(first[pairs.first], second[pairs.second], pairs.cosine)


def _cells_of(index: NDArray[np.int64], visits: AllVisits) -> NDArray[np.int32]:
    """The cells that rows visit."""
    found = np.empty((len(index), visits.blocks[0].cells.shape[1]), np.int32)
    home = np.searchsorted(visits.starts, index, side="right") - 1
    for number in np.unique(home):
        here = home == number
        found[here] = visits.blocks[number].cells[index[here] - visits.starts[number]]
    return found
