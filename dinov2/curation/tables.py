"""Tables that need not fit in memory: their length, some of their rows, and one made of many.

Imports no torch.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinov2.params import InputError

BATCH_ROWS = 65_536


def open_table(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """A Parquet file that holds at least the columns of `schema`, with those types.

    Raises InputError if it is absent, cut short, or of another schema.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; run the stage that makes it (dvc repro)") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({error}); make it again (dvc repro)") from error
    for field in schema:
        position = file.schema_arrow.get_field_index(field.name)
        if position < 0 or file.schema_arrow.field(position).type != field.type:
            raise InputError(f"{path} has no column '{field.name}' of type {field.type}; make it again (dvc repro)")
    return file


def read_rows(path: Path, schema: pa.Schema, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows `start` to `stop` of a table; reads the row groups they lie in, a batch at a time."""
    with open_table(path, schema) as file:
        groups, first, position = [], 0, 0
        for group in range(file.num_row_groups):
            end = position + file.metadata.row_group(group).num_rows
            if position < stop and end > start:
                first = first if groups else position
                groups.append(group)
            position = end
        rows: list[dict[str, Any]] = []
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=schema.names):
            rows.extend(batch[max(start - first, 0) : max(stop - first, 0)].to_pylist())
            first += batch.num_rows
        return rows


def distinct(path: Path, schema: pa.Schema, column: str) -> Iterator[Any]:
    """Values of a column, each once."""
    seen: set[Any] = set()
    with open_table(path, schema) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            new = set(batch.column(0).unique().to_pylist()) - seen
            seen |= new
            yield from sorted(new)


def join_tables(pieces: Iterable[Path], schema: pa.Schema, path: Path) -> int:
    """Write the rows of all `pieces`, in their order, as one Parquet file; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    num_rows = 0
    with pq.ParquetWriter(temporary, schema) as writer:
        for piece in pieces:
            table = pq.read_table(piece, schema=schema)
            num_rows += table.num_rows
            if table.num_rows:
                writer.write_table(table)
    temporary.replace(path)
    return num_rows
