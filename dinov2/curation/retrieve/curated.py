"""The curated set before it is packed, and the rest: row numbers, whose rows are read from dedup's tables in pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from dinov2.curation.retrieve.choose import FATES, ORIGINS, TAKEN, Chosen
from dinov2.records import MANIFEST, REMOVED
from dinov2.tables import read_batches, take_rows

SEED = pa.schema([("id", pa.string()), ("label", pa.string())])
LENGTH = pa.schema([("length", pa.int64())])
LEFT = pa.schema([("id", pa.string()), ("url", pa.string())])


class SeedRows(NamedTuple):
    """Some of dedup's seeds."""

    table: Path
    places: Int[np.ndarray, " s"]
    """Their rows of the table."""
    ids: pa.ChunkedArray
    sources: list[str | None]
    """Their labels; equal ones are one string."""


def read_seeds(table: Path, places: Int[np.ndarray, " s"]) -> SeedRows:
    """The seeds at these places of the table: some hundred bytes each."""
    facts = pa.Table.from_batches(take_rows(table, SEED, places), SEED)
    names: dict[str | None, str | None] = {}
    sources = [names.setdefault(name, name) for part in facts["label"].chunks for name in part.to_pylist()]
    return SeedRows(table, places, facts["id"], sources)


class CuratedRows:
    """The rows of CURATED with where the images lie now: the seeds, if they are to be in it, then what was chosen."""

    def __init__(
        self, pool: Path, fate: Int[np.ndarray, " n"], chosen: Chosen, seeds: SeedRows, *, include_seeds: bool
    ) -> None:
        """`fate` is that of each row of the table `pool`."""
        self.pool, self.chosen, self.seeds = pool, chosen, seeds
        self.places = np.flatnonzero(fate == TAKEN)
        self.num_seeds = len(seeds.places) if include_seeds else 0

    def __len__(self) -> int:
        return self.num_seeds + len(self.places)

    def sources(self) -> set[str | None]:
        """All that they have."""
        by = np.unique(self.chosen.seed).tolist()
        own = self.seeds.sources if self.num_seeds else []
        return {self.seeds.sources[seed] if seed >= 0 else None for seed in by} | set(own)

    def lengths(self) -> Iterator[int]:
        """Bytes of each image."""
        for table, places in ((self.seeds.table, self.seeds.places[: self.num_seeds]), (self.pool, self.places)):
            for batch in take_rows(table, LENGTH, places):
                yield from batch["length"].to_pylist()

    def rows(self, part: range) -> Iterator[dict[str, Any]]:
        """Those of a part."""
        yield from self._seed_rows(min(part.start, self.num_seeds), min(part.stop, self.num_seeds))
        yield from self._pool_rows(max(part.start - self.num_seeds, 0), max(part.stop - self.num_seeds, 0))

    def _seed_rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        clusters = self.chosen.seed_clusters
        for batch in take_rows(self.seeds.table, MANIFEST, self.seeds.places[start:stop]):
            for row in batch.to_pylist():
                cluster = None if clusters is None else int(clusters[start])
                about = {"seed_id": row["id"], "source": row["label"], "cosine": 1.0, "cluster": cluster}
                yield {**row, "origin": "seed", **about}
                start += 1

    def _pool_rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        chosen = self.chosen
        for batch in take_rows(self.pool, MANIFEST, self.places[start:stop]):
            here = slice(start, start + len(batch))
            start = here.stop
            seeds = chosen.seed[here].tolist()
            columns = (chosen.origin[here].tolist(), chosen.cosine[here].tolist(), chosen.cluster[here].tolist())
            for row, seed, origin, cosine, cluster in zip(batch.to_pylist(), seeds, *columns, strict=True):
                by = (None, None) if seed < 0 else (self.seeds.ids[seed].as_py(), self.seeds.sources[seed])
                about = {"seed_id": by[0], "source": by[1], "cosine": cosine, "cluster": cluster}
                yield {**row, "origin": ORIGINS[origin], **about}


def left_out(pool: Path, fate: Int[np.ndarray, " n"]) -> Iterator[pa.RecordBatch]:
    """Rows of REMOVED for the images of the pool that were not taken, in its order."""
    reasons, start = pa.array(FATES), 0
    for batch in read_batches(pool, LEFT):
        here = fate[start : start + len(batch)]
        start += len(batch)
        gone = here != TAKEN
        lost, num = batch.filter(pa.array(gone)), int(gone.sum())
        columns = [lost["id"], lost["url"], reasons.take(pa.array(here[gone]))]
        nulls = [pa.nulls(num, REMOVED.field(name).type) for name in ("witness_id", "cosine")]
        yield pa.RecordBatch.from_arrays([*columns, *nulls], schema=REMOVED)
