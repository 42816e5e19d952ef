"""Parquet tables that need not fit in memory: read and written in pieces, or a few of their rows. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dinov2.records import check_columns, opening

BATCH_ROWS = 65_536
GROUP_BYTES = 64 << 20  # of text: a data: URI is long
WHOLE_ROWS, WHOLE_BYTES = 1 << 20, 1 << 30  # of a row group as write_table makes it; the bytes only bound memory


@contextmanager
def open_table(path: Path, schema: pa.Schema | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file that holds at least the columns of `schema`, with those types.

    Raises InputError if it is absent, cut short, or of another schema.
    """
    with opening(path):
        table = pq.ParquetFile(path)
    with table:
        if schema is not None:
            check_columns(path, table.schema_arrow, schema)
        yield table


def num_rows(path: Path, schema: pa.Schema | None = None) -> int:
    """Rows of a table, from its footer; errors as `open_table`."""
    with open_table(path, schema) as table:
        return table.metadata.num_rows


def read_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The columns of `schema` a piece at a time; errors as `open_table`."""
    with open_table(path, schema) as table:
        for batch in _batches(table, range(table.num_row_groups), schema.names):
            yield batch.select(schema.names)


def _batches(table: pq.ParquetFile, groups: Iterable[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Row groups in pieces, none of which reaches across two groups: the writer bounded their bytes."""
    for group in groups:
        yield from table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)


def iter_rows(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Rows of a table, in order; errors as `open_table`."""
    for batch in read_batches(path, schema):
        yield from batch.to_pylist()


def read_rows(path: Path, schema: pa.Schema, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows `start` to `stop`; reads the row groups they lie in, a batch at a time. Errors as `open_table`."""
    with open_table(path, schema) as table:
        groups, first, position = [], 0, 0
        for group in range(table.num_row_groups):
            end = position + table.metadata.row_group(group).num_rows
            if position < stop and end > start:
                first = first if groups else position
                groups.append(group)
            position = end
        rows: list[dict[str, Any]] = []
        for batch in _batches(table, groups, schema.names):
            rows.extend(batch[max(start - first, 0) : max(stop - first, 0)].to_pylist())
            first += batch.num_rows
        return rows


def take_rows(path: Path, schema: pa.Schema, places: Int[np.ndarray, " n"]) -> Iterator[pa.RecordBatch]:
    """Rows at rising `places`, in pieces; reads only the row groups that they lie in. Errors as `open_table`."""
    with open_table(path, schema) as table:
        start = 0
        for group in range(table.num_row_groups):
            end = start + table.metadata.row_group(group).num_rows
            low, high = np.searchsorted(places, [start, end])
            for batch in _batches(table, [group] if low < high else [], schema.names):
                low, high = np.searchsorted(places, [start, start + len(batch)])
                if low < high:
                    yield batch.select(schema.names).take(pa.array(places[low:high] - start))
                start += len(batch)
            start = end


def distinct(path: Path, schema: pa.Schema, column: str) -> Iterator[Any]:
    """Values of a column, each once."""
    seen: set[Any] = set()
    with open_table(path, schema) as table:
        for batch in table.iter_batches(BATCH_ROWS, columns=[column]):
            new = set(batch.column(0).unique().to_pylist()) - seen
            seen |= new
            yield from sorted(new)


@contextmanager
def write_batches(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer for a table that is made in pieces; it takes its name when the block is left without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        yield writer
    temporary.replace(path)


def join_tables(pieces: Iterable[Path], schema: pa.Schema, path: Path) -> int:
    """Write the rows of all `pieces`, in their order, as one table; returns their number."""
    total = 0
    with write_batches(path, schema) as writer:
        for piece in pieces:
            table = pq.read_table(piece, schema=schema)
            total += table.num_rows
            if table.num_rows:
                writer.write_table(table)
    return total


def write_pieces(path: Path, schema: pa.Schema, pieces: Iterable[pa.RecordBatch | pa.Table]) -> int:
    """Write pieces, in their order, as one table; returns its number of rows.

    The file does not tell how it was cut: it is that of `records.write_table`, of which a row group is held at a time.
    """
    total, held, num, num_bytes = 0, [schema.empty_table()], 0, 0
    with write_batches(path, schema) as writer:
        for piece in pieces:
            held.append(pa.Table.from_batches([piece]) if isinstance(piece, pa.RecordBatch) else piece)
            num, num_bytes, total = num + len(piece), num_bytes + piece.nbytes, total + len(piece)
            if num >= WHOLE_ROWS or num_bytes >= WHOLE_BYTES:
                table = pa.concat_tables(held)
                ready = max(num // WHOLE_ROWS, 1) * WHOLE_ROWS
                writer.write_table(table[:ready].combine_chunks(), WHOLE_ROWS)
                held = [table[ready:]]
                num, num_bytes = len(held[0]), held[0].nbytes
        if num or not total:
            writer.write_table(pa.concat_tables(held).combine_chunks())
    return total


class TableWriter:
    """Writes rows one by one; the row groups of the file depend on the rows alone."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.num_rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[Mapping[str, Any]] = []
        self._num_bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)
        self.num_rows += 1
        for value in row.values():
            if type(value) is str or type(value) is bytes:
                self._num_bytes += len(value)
        if len(self._rows) == BATCH_ROWS or self._num_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._num_bytes = [], 0
