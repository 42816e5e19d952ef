"""Rows that change hands between parts: every giver writes one file, every taker reads its own rows of all files.

A file (Arrow IPC) has one batch a taker, so that reading one costs no more than its rows. Both sides hold one part's
rows in memory, never all.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def give(
    path: Path, schema: pa.Schema, rows: Iterable[tuple[Any, ...]], takers: Sequence[int], num_takers: int
) -> None:
    """Write rows, given as tuples in the order of `schema`, each for the taker at its place in `takers`."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    order = np.argsort(np.asarray(takers, dtype=np.int64), kind="stable")
    ends = np.cumsum(np.bincount(np.asarray(takers, dtype=np.int64), minlength=num_takers))
    table = table.take(pa.array(order)).combine_chunks()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        start = 0
        for end in ends.tolist():
            batches = table.slice(start, end - start).to_batches() or [pa.RecordBatch.from_pylist([], schema=schema)]
            assert len(batches) == 1, (path, len(batches))
            writer.write_batch(batches[0])
            start = end
    temporary.replace(path)


def take(paths: Iterable[Path], taker: int) -> list[tuple[Any, ...]]:
    """The rows for one taker in all files, by their first column: the position of the record."""
    rows: list[tuple[Any, ...]] = []
    for path in paths:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            batch = reader.get_batch(taker)
        rows.extend(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return sorted(rows, key=lambda row: row[0])
