"""Curated images copied into shards of their own, in parts that any process may make, one after another or again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinov2.records import CURATED, read_table, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store

SHARDS_A_PART = 8  # so that the shards that a part leaves half full are few

Rows = Sequence[Mapping[str, Any]]


def packing_parts(rows: Rows, shard_mb: int) -> list[Rows]:
    """Rows in their order, in parts that fill about `SHARDS_A_PART` shards."""
    parts: list[Rows] = []
    start, size = 0, 0
    for place, row in enumerate(rows):
        size += row["length"]
        if size >= SHARDS_A_PART * shard_mb * 1_000_000:
            parts.append(rows[start : place + 1])
            start, size = place + 1, 0
    return [*parts, rows[start:]] if start < len(rows) else parts


def pack(part: Rows, place: Path, *, shard_mb: int, store: Store) -> None:
    """Pack the images of `part` unless `place` says that they are; it is a table of CURATED with where they lie now."""
    if place.exists():
        return
    reader = ShardReader(store)
    with ShardWriter(store, place.with_suffix(""), shard_mb=shard_mb) as writer:
        for row in part:
            writer.add(reader.read(row), {name: row[name] for name in CURATED.names})
    reader.close()
    write_table(place, CURATED, writer.rows)


def packed(place: Path) -> list[dict[str, Any]]:
    """Rows of a packed part."""
    return read_table(place, CURATED)
