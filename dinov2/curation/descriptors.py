"""Descriptors on disk: float16 `.npy` blocks of unit-length rows in the store, aligned with a table of samples.

`embeddings.json` names the blocks, in order: {set: {kind: [blob, ...]}}; the sets are pool, seeds and evaluation, the
kinds copy and semantic. `<set>.parquet` has their samples (EMBEDDED), row by row. Imports no torch.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from dinov2.params import InputError
from dinov2.records import MANIFEST
from dinov2.store import Store
from dinov2.tables import num_rows, read_batches

ID = pa.schema([("id", pa.string())])
EMBEDDED = MANIFEST.append(pa.field("path", pa.string()))  # below the seeds or evaluation folder; null in the pool

SetName = Literal["pool", "seeds", "evaluation"]
Kind = Literal["copy", "semantic"]
LENGTH_TOLERANCE = 5e-3  # float16 keeps 11 bits


def store_block(store: Store, work: Path, vectors: Float[np.ndarray, "n d"]) -> str:
    """Put unit-length rows into the store as float16; returns the blob's name."""
    with tempfile.NamedTemporaryFile(dir=work, suffix=".npy", delete=False) as stream:
        np.save(stream, vectors.astype(np.float16))
    return store.add(Path(stream.name), ".npy")


def read_ids(table: Path) -> Iterator[str]:
    """The column id, in order, a piece at a time."""
    for batch in read_batches(table, ID):
        yield from batch["id"].to_pylist()


def open_rows(embed: Path, sets: Sequence[SetName], kind: Kind, store: Store) -> "Rows":
    """Descriptors of these sets, one after another, read from disk where they are asked for.

    Raises InputError if a block is absent or damaged, if blocks differ in their number of dimensions, or if there are
    more or fewer rows than samples.
    """
    index = embed / "embeddings.json"
    try:
        listed = json.loads(index.read_text())
        names = [name for part in sets for name in listed[part][kind]]
    except (OSError, ValueError, KeyError) as error:
        told = ", ".join(sets)
        raise InputError(f"{index} does not list {kind} descriptors of {told} ({error}); run embed again") from error
    store.check(names, needed_by=index)
    blocks = [_stored(store.local(name), needed_by=index) for name in names]
    shapes = {block.shape[1:] for block in blocks if len(block)}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise InputError(f"{index}: {kind} descriptors of {', '.join(sets)} have several sizes; run embed again")
    rows, num_images = Rows(blocks), sum(num_rows(embed / f"{name}.parquet") for name in sets)
    if len(rows) != num_images:
        raise InputError(
            f"{index}: {len(rows)} {kind} descriptors for {num_images} images of {', '.join(sets)}; run embed again"
        )
    return rows


def _stored(file: Path, *, needed_by: Path) -> "Stored":
    try:
        return Stored(file)
    except (ValueError, EOFError) as error:
        sentence = f"{needed_by}: blob {file.name} is damaged ({error}); delete it and run embed again"
        raise InputError(sentence) from error


def is_unit(lengths: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether rows of these lengths were of length 1 before their rounding to float16; NaN was not."""
    return np.abs(lengths - 1) < LENGTH_TOLERANCE


def unit_rows(raw: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Float32 rows made exactly of unit length again after their rounding to float16; zeros for those that are not."""
    vectors = raw.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = ~is_unit(lengths)
    vectors[wrong], lengths[wrong] = 0, 1
    vectors /= lengths[:, None]
    return vectors


class Stored:
    """An array on disk, opened for each look: a map that stays open keeps a file descriptor, and blocks are many."""

    def __init__(self, file: Path) -> None:
        self._file = file
        mapped = self._open()
        self.shape, self.dtype = mapped.shape, mapped.dtype

    def _open(self) -> NDArray[Any]:
        return np.load(self._file, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Int[np.ndarray, " n"]) -> NDArray[Any]:
        return np.array(self._open()[rows])


class Rows:
    """Blocks of descriptors, one after another. Memory is that of what is asked for.

    A row that can't be compared (NaN, infinite, or not of unit length) reads as zeros, which are similar to nothing.
    """

    def __init__(self, blocks: Sequence[NDArray[np.floating] | Stored]) -> None:
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
        return unit_rows(self.stored(index))

    def stored(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """Rows by number as they are stored, whatever they hold."""
        found = np.empty((len(index), self.dims), self.blocks[0].dtype if self.blocks else np.float16)
        home = np.searchsorted(self.starts, index, side="right") - 1
        for number in np.unique(home):
            here = np.flatnonzero(home == number)
            found[here] = self.blocks[number][index[here] - self.starts[number]]
        return found
