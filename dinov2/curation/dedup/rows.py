"""Descriptors as rows of unit length, read by slices from the blocks where they lie.

Memory is that of what is asked for.

A row that can't be compared (NaN, infinite, or not of unit length) reads as zeros, which are similar to nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dinov2.curation.descriptors import LENGTH_TOLERANCE
from dinov2.params import InputError
from dinov2.store import Store
from dinov2.tables import num_rows


def open_rows(embed: Path, sets: Sequence[str], store: Store) -> "Rows":
    """Copy descriptors of the sets of an embed folder, one after another, mapped into memory.

    Raises InputError if a block is absent or damaged or blocks differ in their number of dimensions.
    """
    index = embed / "embeddings.json"
    try:
        listed = json.loads(index.read_text())
        names = [name for part in sets for name in listed[part]["copy"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index} does not list copy descriptors of {sets} ({error}); run embed again") from error
    store.check(names, needed_by=index)
    blocks = []
    for name in names:
        try:
            blocks.append(np.load(store.local(name), mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise InputError(f"{index}: blob {name} is damaged ({error}); delete it and run embed again") from error
    shapes = {block.shape[1:] for block in blocks if len(block)}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise InputError(f"{index}: copy descriptors of {sets} have shapes {sorted(shapes)}; run embed again")
    rows, num_images = Rows(blocks), sum(num_rows(embed / f"{name}.parquet") for name in sets)
    if len(rows) != num_images:
        raise InputError(f"{index}: {len(rows)} copy descriptors for {num_images} images of {sets}; run embed again")
    return rows


def unit_rows(raw: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Float32 rows made exactly of unit length again after their rounding to float16; zeros for those that are not."""
    vectors = raw.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = ~(np.abs(lengths - 1) < LENGTH_TOLERANCE)  # NaN is wrong too
    vectors[wrong], lengths[wrong] = 0, 1
    vectors /= lengths[:, None]
    return vectors


class Rows:
    """Blocks of raw descriptors, one after another."""

    def __init__(self, blocks: Sequence[NDArray[np.floating]]) -> None:
        self.blocks = [block for block in blocks if len(block)]
        self.starts = np.cumsum([0, *(len(block) for block in self.blocks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dims(self) -> int:
        """Numbers a row; 1 where there is none."""
        return self.blocks[0].shape[1] if self.blocks else 1

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n d"]:
        """Rows from `start` to before `stop`."""
        found = np.empty((max(0, min(stop, len(self)) - start), self.dims), np.float32)
        for block, first in zip(self.blocks, self.starts, strict=False):
            low, high = max(start, first), min(start + len(found), first + len(block))
            if low < high:
                found[low - start : high - start] = unit_rows(block[low - first : high - first])
        return found

    def take(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """Rows by number, in that order."""
        found = np.empty((len(index), self.dims), np.float32)
        home = np.searchsorted(self.starts, index, side="right") - 1
        for number in np.unique(home):
            here = np.flatnonzero(home == number)
            found[here] = unit_rows(self.blocks[number][index[here] - self.starts[number]])
        return found
