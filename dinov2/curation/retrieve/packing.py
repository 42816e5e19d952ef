"""Curated images copied into shards of their own, in parts that any process may make, one after another or again."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dinov2.records import CURATED, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store

SHARDS_A_PART = 8  # so that the shards that a part leaves half full are few


def packing_parts(lengths: Iterable[int], shard_mb: int) -> list[range]:
    """Images of these many bytes, in their order, in parts that fill about `SHARDS_A_PART` shards."""
    parts: list[range] = []
    start, stop, size = 0, 0, 0
    for stop, length in enumerate(lengths, 1):
        size += length
        if size >= SHARDS_A_PART * shard_mb * 1_000_000:
            parts.append(range(start, stop))
            start, size = stop, 0
    return [*parts, range(start, stop)] if start < stop else parts


def pack(rows: Iterable[Mapping[str, Any]], place: Path, *, shard_mb: int, store: Store) -> None:
    """Pack the images of a part unless `place` says that they are; it is a table of CURATED with where they lie now."""
    if place.exists():
        return
    reader = ShardReader(store)
    with ShardWriter(store, place.with_suffix(""), shard_mb=shard_mb) as writer:
        for row in rows:
            writer.add(reader.read(row), row)
    reader.close()
    write_table(place, CURATED, writer.rows)
