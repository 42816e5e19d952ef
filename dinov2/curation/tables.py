"""Parquet tables that are written row by row, with memory for one group of rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 1 << 16
GROUP_BYTES = 64 << 20  # of text: a data: URI is long


class TableWriter:
    """Writes rows of one schema to one file; the row groups depend on the rows alone."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        self.num_rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)
        self.num_rows += 1
        for value in row.values():
            if type(value) is str or type(value) is bytes:
                self._num_bytes += len(value)
        if len(self._rows) == GROUP_ROWS or self._num_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._num_bytes = [], 0


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, in order, one group in memory."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield from file.read_row_group(number).to_pylist()
