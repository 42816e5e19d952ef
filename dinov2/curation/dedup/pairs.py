"""Pairs on disk: a file a part, each sorted by first, then second row, and looked at one at a time."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from dinov2.curation.dedup.join import Pairs, merged

RECORD = np.dtype([("first", "<i8"), ("second", "<i8"), ("cosine", "<f4")])


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write by a temporary name, so that a file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.save(stream, array)
    temporary.replace(path)


def save_pairs(path: Path, pairs: Pairs, *, first: int = 0, second: int = 0) -> None:
    """Write pairs whose rows are counted from `first` and `second`."""
    table = np.empty(len(pairs.first), RECORD)
    table["first"], table["second"], table["cosine"] = pairs.first + first, pairs.second + second, pairs.cosine
    save_array(path, table)


def load_pairs(path: Path) -> Pairs:
    """Pairs that `save_pairs` wrote."""
    table = np.load(path)
    return Pairs(table["first"].copy(), table["second"].copy(), table["cosine"].copy())


def block_pair(part: int, num_blocks: int) -> tuple[int, int]:
    """The part's place in the upper triangle of pairs of blocks, row by row."""
    row = 0
    while part >= num_blocks - row:
        part -= num_blocks - row
        row += 1
    return row, row + part


def rows_of(shards: Iterable[Pairs]) -> Int[np.ndarray, " n"]:
    """All rows that occur in pairs, in order."""
    found = np.empty(0, np.int64)
    for pairs in shards:
        found = np.union1d(found, np.concatenate([pairs.first, pairs.second]))
    return found


def are_among(
    first: Int[np.ndarray, " p"], second: Int[np.ndarray, " p"], shards: Iterable[Pairs], num_rows: int
) -> Bool[np.ndarray, " p"]:
    """Which pairs, in whatever order of their two rows, occur in the shards; `num_rows` counts all rows."""
    wanted = np.minimum(first, second) * num_rows + np.maximum(first, second)
    found = np.zeros(len(wanted), bool)
    for pairs in shards:
        if len(pairs.first):
            keys = pairs.first * num_rows + pairs.second
            found |= keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted
    return found


class PairFiles:
    """The pairs of files, some files at a time each time they are gone through: about `at_once` pairs.

    Of `rows`, if given, rows are named by their place in it.
    """

    at_once = 1 << 24

    def __init__(self, paths: Sequence[Path], rows: Int[np.ndarray, " n"] | None = None) -> None:
        self.paths = paths
        self.rows = rows

    def __iter__(self) -> Iterator[Pairs]:
        gathered: list[Pairs] = []
        for path in self.paths:
            gathered.append(load_pairs(path))
            if sum(len(pairs.first) for pairs in gathered) >= self.at_once:
                yield self._named(merged(gathered))
                gathered = []
        if gathered:
            yield self._named(merged(gathered))

    def _named(self, pairs: Pairs) -> Pairs:
        if self.rows is None:
            return pairs
        first, second = (np.searchsorted(self.rows, index) for index in (pairs.first, pairs.second))
        return Pairs(first, second, pairs.cosine)
