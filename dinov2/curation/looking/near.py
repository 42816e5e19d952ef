"""Nearest neighbours of a few images among many, over descriptor blocks as they lie in the store, one at a time.

Memory is that of the queries and one block, whatever the number of images. Where a set has more rows than the caller
wants looked at, whole blocks are drawn by a seed, and what is found is of those. Imports no torch.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dinov2.curation.descriptors import Kind, SetName
from dinov2.params import InputError
from dinov2.store import Store

Block = tuple[int, NDArray[np.float32]]  # number of its first row, unit-length rows
ROWS = 16384  # of a block, multiplied at once


class Blocks:
    """The descriptors of a set, or of whole blocks drawn from it; rows are numbered as in the set's table."""

    def __init__(self, embed: Path, name: SetName, kind: Kind, store: Store, *, max_rows: int, seed: int) -> None:
        index = embed / "embeddings.json"
        try:
            names = json.loads(index.read_text())[name][kind]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{index} does not list {kind} descriptors of {name} ({error}); run embed again"
            ) from error
        store.check(names, needed_by=index)
        self._arrays = [np.load(store.local(blob), mmap_mode="r", allow_pickle=False) for blob in names]
        sizes = np.array([len(array) for array in self._arrays], np.int64)
        self._starts = np.cumsum(sizes) - sizes
        self.num_rows = int(sizes.sum())
        self.chosen = self._draw(sizes, max_rows, seed)
        self.num_chosen = int(sizes[self.chosen].sum())

    @staticmethod
    def _draw(sizes: NDArray[np.int64], max_rows: int, seed: int) -> list[int]:
        """All blocks, or the first of a drawn order until `max_rows` are reached; in the set's order."""
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(sizes))
        before = np.cumsum(sizes[order]) - sizes[order]
        return sorted(order[before < max_rows].tolist())

    def __iter__(self) -> Iterator[Block]:
        for block in self.chosen:
            for row in range(0, len(self._arrays[block]), ROWS):
                yield int(self._starts[block]) + row, _unit(self._arrays[block][row : row + ROWS])

    def draw_rows(self, num: int, seed: int) -> NDArray[np.int64]:
        """`num` row numbers of the chosen blocks, or all, in ascending order."""
        rows = np.random.Generator(np.random.PCG64(seed)).permutation(self.num_chosen)[:num]
        sizes = np.array([len(self._arrays[block]) for block in self.chosen], np.int64)
        ends = np.cumsum(sizes)
        place = np.searchsorted(ends, rows, side="right")
        return np.sort(self._starts[self.chosen][place] + rows - (ends - sizes)[place])

    def take(self, rows: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r d"]:
        """The descriptors of these rows, unit length, float32."""
        block = np.searchsorted(self._starts, rows, side="right") - 1
        width = self._arrays[0].shape[1] if self._arrays else 0
        taken = [self._arrays[b][row - self._starts[b]] for b, row in zip(block.tolist(), rows.tolist(), strict=True)]
        return _unit(np.array(taken).reshape(-1, width))


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
    for start, block in blocks:
        products = queries @ block.T
        if leave_out is not None:
            inside = np.flatnonzero((leave_out >= start) & (leave_out < start + len(block)))
            products[inside, leave_out[inside] - start] = -np.inf
        num = min(k, products.shape[1])
        columns = np.argpartition(-products, num - 1, axis=1)[:, :num]
        cosine = np.concatenate([cosine, np.take_along_axis(products, columns, axis=1)], axis=1)
        index = np.concatenate([index, columns + start], axis=1)
        order = np.lexsort((index, -cosine), axis=1)[:, :k]
        cosine, index = np.take_along_axis(cosine, order, axis=1), np.take_along_axis(index, order, axis=1)
    return np.clip(cosine, -np.inf, 1), index


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of unit length; one with a number that is not finite is near to nothing, all zeros."""
    rows = np.array(vectors, np.float32)
    rows[~np.isfinite(rows).all(axis=1)] = 0
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
