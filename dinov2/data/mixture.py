"""Several sources at once, each with its share of the images that are drawn, in an order that is computed.

A cycle of 10,000 positions gives every source its share, spread evenly. How many images of a source came before a
position thus follows from the position, and each source is walked in its own permuted order: none of its images is seen
again before all of them were. Nothing is counted, so nothing has to be saved.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.data.order import interleave, sample_index, shares
from dinov2.data.params import CuratedParams, FolderParams, ListParams, SourceParams
from dinov2.data.parquet import ParquetSource
from dinov2.data.sources import FolderSource, ListSource, ShardSource, Source, digest
from dinov2.params import InputError
from dinov2.records import CURATED, read_table
from dinov2.shards import ShardReader
from dinov2.store import Store

CYCLE = 10_000


class Part(NamedTuple):
    """A source in a mixture."""

    name: str
    source: Source
    weight: float
    """Its share of the images drawn, in proportion to the others' weights; not of the images there are."""


class Mixture:
    """The sources after one another, as one source; `index_at` is its order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises InputError if a weight is not above 0, or so small beside the others that it never comes up."""
        for part in parts:
            if not part.weight > 0:
                raise InputError(f"source {part.name} has weight {part.weight}; give it one above 0 or take it out")
        self.parts = list(parts)
        self._ends = list(accumulate(len(part.source) for part in parts))
        self._counts = shares([part.weight for part in parts], CYCLE)
        for part, count in zip(parts, self._counts, strict=True):
            if count == 0:
                raise InputError(
                    f"source {part.name} with weight {part.weight} has less than one in {CYCLE} of the sum of weights; "
                    "raise it or take it out"
                )
        self._kinds, self._before = interleave(self._counts)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, i: int) -> bytes:
        number, index = self._place(i)
        return self.parts[number].source.read(index)

    def id(self, i: int) -> str:
        number, index = self._place(i)
        return f"{self.parts[number].name}: {self.parts[number].source.id(index)}"

    def label(self, i: int) -> str | None:
        number, index = self._place(i)
        return self.parts[number].source.label(index)

    def fingerprint(self) -> str:
        return digest(f"{part.name} {part.weight!r} {part.source.fingerprint()}" for part in self.parts)

    def part_of(self, i: int) -> Part:
        """The source that the i-th image belongs to."""
        return self.parts[self._place(i)[0]]

    def index_at(self, seed: int, position: int, *, later: int) -> int:
        """The image at a position of the endless order, or the one that comes `later` images after it in its source."""
        cycle, place = divmod(position, CYCLE)
        number = int(self._kinds[place])
        ordinal = cycle * self._counts[number] + int(self._before[place])
        length = len(self.parts[number].source)
        own_seed = seed + (number << 32)  # so that sources of one length don't go through their images alike
        return self._ends[number] - length + sample_index(own_seed, ordinal + later, length)

    def _place(self, i: int) -> tuple[int, int]:
        number = bisect_right(self._ends, i)
        return number, i - (self._ends[number - 1] if number else 0)


def index_at(source: Source, seed: int, position: int, *, later: int) -> int:
    """`Mixture.index_at` of any source."""
    if isinstance(source, Mixture):
        return source.index_at(seed, position, later=later)
    return sample_index(seed, position + later, len(source))


def name_at(source: Source, i: int) -> str:
    """What to call the source of the i-th image when all of it is unreadable."""
    return f"source {source.part_of(i).name}" if isinstance(source, Mixture) else "the source"


def open_sources(params: Sequence[SourceParams], *, retrieve: Path, store: Store) -> Source:
    """The images to train on: one source as it is, several as a mixture. `retrieve` is this pipeline's curated set.

    A curated set with a mixture of its own divides its weight by it. Raises InputError for what can't be opened.
    """
    parts: list[Part] = []
    for each in params:
        name = f"{each.kind} {each.path}" if each.path is not None else each.kind
        source = open_source(each, retrieve=retrieve, store=store)
        within = source.parts if isinstance(source, Mixture) else [Part("", source, 1.0)]
        share = each.weight / sum(part.weight for part in within)
        parts += [Part(f"{name} {part.name}".strip(), part.source, share * part.weight) for part in within]
    return Mixture(parts) if len(parts) > 1 else parts[0].source


def open_source(params: SourceParams, *, retrieve: Path, store: Store) -> Source:
    """One source; see `open_sources`."""
    if isinstance(params, CuratedParams):
        return open_curated(retrieve if params.path is None else Path(params.path), store)
    path = Path(params.path)
    if isinstance(params, FolderParams):
        return FolderSource(path)
    if isinstance(params, ListParams):
        return ListSource(path)
    return ParquetSource(path, image_column=params.image_column, label_column=params.label_column)


def open_curated(retrieve: Path, store: Store) -> Source:
    """The images of a retrieve stage; a mixture of their sources if its mixture.json weighs them.

    There `others` has the weight of all sources that are not named, and of images without one. Raises InputError.
    """
    manifest = retrieve / "manifest.parquet"
    rows = read_table(manifest, CURATED)
    store.check((row["shard"] for row in rows), needed_by=manifest)
    reader = ShardReader(store)
    file = retrieve / "mixture.json"
    weights: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    of_source: dict[str, list[dict[str, Any]]] = {name: [] for name in weights or ["others"]}
    for row in rows:
        name = row["source"] if row["source"] in weights else "others"
        if name not in of_source:
            raise InputError(f"{file} has no weight for source {row['source']}; run retrieve again")
        of_source[name].append(row)
    if not weights:
        return ShardSource(rows, reader)
    return Mixture([Part(name, ShardSource(of_source[name], reader), weight) for name, weight in weights.items()])
