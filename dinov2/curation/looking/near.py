"""Nearest neighbours of a few images among many, over descriptor blocks as they lie in the store, one at a time.

Memory is that of the queries and one block, whatever the number of images. Where a set has more rows than the caller
wants looked at, whole blocks are drawn by a seed, and what is found is of those. Imports no torch.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dinov2.curation.descriptors import Kind, SetName, open_rows
from dinov2.search import top_k
from dinov2.store import Store

Block = tuple[int, NDArray[np.float32]]  # number of its first row, unit-length rows
ROWS = 16384  # of a block, looked at together


class Blocks:
    """The descriptors of a set, or of whole blocks drawn from it; rows are numbered as in the set's table."""

    def __init__(self, embed: Path, name: SetName, kind: Kind, store: Store, *, max_rows: int, seed: int) -> None:
        """Raises InputError as `open_rows`."""
        self.rows = open_rows(embed, [name], kind, store)
        self._sizes = np.diff(self.rows.starts)
        self.chosen = self._draw(max_rows, seed)
        self.num_chosen = int(self._sizes[self.chosen].sum())

    def _draw(self, max_rows: int, seed: int) -> list[int]:
        """All blocks, or the first of a drawn order until `max_rows` are reached; in the set's order."""
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(self._sizes))
        before = np.cumsum(self._sizes[order]) - self._sizes[order]
        return sorted(order[before < max_rows].tolist())

    def __iter__(self) -> Iterator[Block]:
        for block in self.chosen:
            start, end = self.rows.starts[block : block + 2].tolist()
            for row in range(start, end, ROWS):
                yield row, self.rows.read(row, min(row + ROWS, end))

    def draw_rows(self, num: int, seed: int) -> NDArray[np.int64]:
        """`num` row numbers of the chosen blocks, or all, in ascending order."""
        rows = np.random.Generator(np.random.PCG64(seed)).permutation(self.num_chosen)[:num]
        sizes = self._sizes[self.chosen]
        ends = np.cumsum(sizes)
        place = np.searchsorted(ends, rows, side="right")
        return np.sort(self.rows.starts[self.chosen][place] + rows - (ends - sizes)[place])


def nearest(
    queries: Float[np.ndarray, "q d"],
    blocks: Iterable[Block],
    k: int,
    *,
    leave_out: Int[np.ndarray, " q"] | None = None,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Cosines and row numbers of the k nearest descriptors, best first; of equals the earlier row.

    `leave_out` has for each query one row that does not count: itself.
    """
    cosine = np.empty((len(queries), 0), np.float32)
    index = np.empty((len(queries), 0), np.int64)
    num = k if leave_out is None else k + 1
    for start, block in blocks:
        found, rows = top_k(queries, block, min(num, len(block)))
        cosine = np.concatenate([cosine, found], axis=1)
        index = np.concatenate([index, rows + start], axis=1)
        if leave_out is not None:
            cosine[index == leave_out[:, None]] = -np.inf
        order = np.lexsort((index, -cosine), axis=1)[:, :k]
        cosine, index = np.take_along_axis(cosine, order, axis=1), np.take_along_axis(index, order, axis=1)
    return np.clip(cosine, -np.inf, 1), index
