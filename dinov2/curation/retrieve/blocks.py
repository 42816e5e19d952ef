"""Descriptors a block at a time, so that memory is that of a block, whatever the number of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from dinov2.curation.descriptors import Kind, Rows, SetName, is_unit, open_rows, read_ids
from dinov2.distributed import all_reduce_sum, rank, world_size
from dinov2.params import InputError
from dinov2.store import Store
from dinov2.tables import num_rows

BLOCK_ROWS = 16384


@runtime_checkable  # shapes and types are checked when tests run
class Blocks(Protocol):
    """Vectors of unit length, in blocks of `BLOCK_ROWS` but for the last. Results may not depend on that number."""

    def num_rows(self) -> int:
        """All vectors."""
        ...

    def take(self, rows: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r d"]:
        """Some of them, by number."""
        ...

    def subset(self, rows: Int[np.ndarray, " r"]) -> "Blocks":
        """Some of them, as blocks again."""
        ...


def rows_of(blocks: Blocks, number: int) -> Int[np.ndarray, " r"]:
    """Numbers of the rows of a block."""
    return np.arange(number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, blocks.num_rows()))


def own_blocks(blocks: Blocks) -> range:
    """Numbers of the blocks that are this process's."""
    return range(rank(), -(-blocks.num_rows() // BLOCK_ROWS), world_size())


def is_own(rows: Int[np.ndarray, " r"]) -> Bool[np.ndarray, " r"]:
    """Whether rows lie in blocks of this process."""
    return rows // BLOCK_ROWS % world_size() == rank()


def unusable(blocks: Blocks, device: torch.device) -> Int[np.ndarray, " r"]:
    """Rows that are not of unit length, so that they can't be compared: NaN is one.

    To be called by all processes, which meet on their `device`.
    """
    wrong = torch.zeros(blocks.num_rows(), dtype=torch.uint8)
    for number in own_blocks(blocks):
        rows = rows_of(blocks, number)
        lengths = np.linalg.norm(blocks.take(rows).astype(np.float32), axis=1)
        wrong[rows[0] : rows[-1] + 1] = torch.from_numpy(~is_unit(lengths))
    return np.flatnonzero(all_reduce_sum(wrong.to(device)).cpu().numpy())


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """As float32, made exactly of unit length again after their rounding to float16."""
    longer = vectors.astype(np.float32)
    return longer / np.linalg.norm(longer, axis=1, keepdims=True)


class InMemory:
    """Vectors of an array."""

    def __init__(self, vectors: Float[np.ndarray, "n d"]) -> None:
        self.vectors = vectors

    def num_rows(self) -> int:
        return len(self.vectors)

    def take(self, rows: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r d"]:
        return self.vectors[rows]

    def subset(self, rows: Int[np.ndarray, " r"]) -> "InMemory":
        return InMemory(self.vectors[rows])


class OnDisk:
    """Descriptors that the stage embed left in the store, float16, of some images in any order."""

    def __init__(self, rows: Rows, places: Int[np.ndarray, " n"]) -> None:
        """`places` has the row of each image."""
        self._rows, self._places = rows, places

    def num_rows(self) -> int:
        return len(self._places)

    def take(self, rows: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r d"]:
        return self._rows.stored(self._places[rows])

    def subset(self, rows: Int[np.ndarray, " r"]) -> "OnDisk":
        return OnDisk(self._rows, self._places[rows])


def open_blocks(embed: Path, name: SetName, kind: Kind, table: Path, store: Store) -> OnDisk:
    """Descriptors of the images of a table, which are some of the set's, in its order.

    Raises InputError if some have none, or as `open_rows`.
    """
    return OnDisk(open_rows(embed, [name], kind, store), _places(embed, name, table))


def _places(embed: Path, name: SetName, table: Path) -> Int[np.ndarray, " n"]:
    """The row of the set of each image of the table. Both are read once, side by side."""
    stored = enumerate(read_ids(embed / f"{name}.parquet"))

    def found() -> Iterator[int]:
        for image in read_ids(table):
            for number, other in stored:  # which goes on from where it is
                if other == image:
                    yield number
                    break
            else:
                raise InputError(
                    f"{embed} has no descriptors of some images of {name} in {table}, or not in that order (the first: "
                    f"{image}); run embed, then dedup, again"
                )

    few = num_rows(embed / f"{name}.parquet") < 2**31
    return np.fromiter(found(), np.int32 if few else np.int64, num_rows(table))
