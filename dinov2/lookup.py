"""Rows of a Parquet table by a value, a few at random, or one column: streamed, so that memory does not grow with it.

Tables are those of records.py. A stage that was not run has none: what is absent holds nothing here, and whoever asks
says so. Imports no torch.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from dinov2.params import InputError
from dinov2.records import opening

Row = dict[str, Any]
BATCH_ROWS = 65536


def batches(table: Path, columns: list[str] | None = None, where: pc.Expression | None = None) -> Iterator[Row]:
    """Columns as {name: pyarrow array}, batch by batch in the table's order; nothing if there is no table.

    Raises InputError if the file is no Parquet, is cut short, or lacks a column.
    """
    if not table.exists():
        return
    with opening(table):
        source = ds.dataset(table, format="parquet")
        absent = sorted(set(columns or ()) - set(source.schema.names))
        if absent:
            raise InputError(f"{table} has no column '{absent[0]}'; make it again (dvc repro)")
        for batch in source.to_batches(columns=columns, filter=where, batch_size=BATCH_ROWS, use_threads=False):
            yield {name: batch.column(name) for name in batch.schema.names}


def rows(table: Path, where: pc.Expression | None = None, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows for which `where` holds."""
    for batch in batches(table, columns, where):
        names, values = list(batch), [array.to_pylist() for array in batch.values()]
        yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))


def rows_with(table: Path, column: str, values: Collection[str]) -> list[Row]:
    """The rows whose `column` is one of `values`."""
    return list(rows(table, ds.field(column).isin(sorted(values)))) if values else []


def rows_at(table: Path, places: Collection[int]) -> list[Row]:
    """The rows at these places, in their order in the table."""
    wanted = np.unique(np.array(sorted(places), np.int64))
    found, start = [], 0
    for batch in batches(table):
        size = len(next(iter(batch.values())))
        here = wanted[(wanted >= start) & (wanted < start + size)] - start
        columns = {name: array.take(pa.array(here)).to_pylist() for name, array in batch.items()} if len(here) else {}
        found += [{name: values[i] for name, values in columns.items()} for i in range(len(here))]
        start += size
    return found


def num_rows(table: Path, where: pc.Expression | None = None) -> int:
    """How many rows a table has, or how many for which `where` holds; 0 if there is no table."""
    return ds.dataset(table, format="parquet").count_rows(filter=where) if table.exists() else 0


def sample_by(table: Path, column: str, num: int, seed: int) -> dict[str, tuple[int, list[Row]]]:
    """For each value of `column`: its number of rows, and `num` of them, or all, drawn by `seed` alone.

    Each row draws a number in the table's order, and those with the least stay.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    counts: dict[str, int] = {}
    best: dict[str, list[tuple[float, Row]]] = {}
    for batch in batches(table):
        values = np.array(batch[column].to_pylist(), object)
        drawn = rng.random(len(values))
        for value in dict.fromkeys(values.tolist()):
            places = np.flatnonzero(values == value)
            counts[value] = counts.get(value, 0) + len(places)
            places = places[np.argsort(drawn[places], kind="stable")[:num]]
            fresh = [(float(drawn[i]), {name: array[i].as_py() for name, array in batch.items()}) for i in places]
            best[value] = sorted([*best.get(value, []), *fresh], key=lambda item: item[0])[:num]
    return {value: (counts[value], [row for _, row in best[value]]) for value in sorted(counts)}


def first_by_id(
    table: Path, column: str, num: int, where: pc.Expression | None = None
) -> dict[str, tuple[int, list[Row]]]:
    """For each value of `column`: its number of rows, and the `num` of least id, or all, in rising order of ids."""
    counts: dict[str, int] = {}
    best: dict[str, pa.Table] = {}
    for batch in batches(table, where=where):
        piece = pa.table(batch)
        for value in piece[column].unique().to_pylist():
            members = piece.filter(ds.field(column) == value)
            counts[value] = counts.get(value, 0) + len(members)
            both = pa.concat_tables([best[value], members]) if value in best else members
            best[value] = both.sort_by("id").slice(0, num)
    return {value: (counts[value], best[value].to_pylist()) for value in sorted(counts)}


def read_record(folder: Path) -> Row | None:
    """`record.json` of a stage's output; None where there is none. Raises InputError if it is damaged."""
    return _read_json(folder / "record.json")


def read_metrics(folder: Path) -> Row:
    """`metrics.json` of a stage's output; empty where there is none. Raises InputError if it is damaged."""
    return _read_json(folder / "metrics.json") or {}


def _read_json(path: Path) -> Row | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); make it again (dvc repro)") from error
