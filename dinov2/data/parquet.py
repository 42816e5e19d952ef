"""Images whose bytes lie in a column of Parquet files, as data sets are often handed out.

A Parquet file is read a row group at a time, so a random row costs its whole group. The groups that were read last are
kept, within a bound; files with small groups (some hundred images) are read fastest.
"""

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinov2.data.sources import digest
from dinov2.params import InputError

logger = logging.getLogger(__name__)

CACHE_BYTES = 512 * 2**20
LARGE_GROUP_BYTES = 64 * 2**20


class ParquetSource:
    """Rows of a Parquet file, or of all below a folder in the order of their paths.

    `image_column` holds bytes, or structs with a field `bytes` (as Hugging Face's datasets write images). In memory are
    the places of the row groups and at most `cache_bytes` of groups, or one group if that is larger.
    """

    def __init__(
        self, path: Path, *, image_column: str, label_column: str | None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Raises InputError if there is no file, or one that is cut short, lacks a column or holds no bytes in it."""
        self.path = path
        self.files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        self.image_column = image_column
        self.label_column = label_column
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()
        self._groups: list[tuple[int, int]] = []  # file and number of the group in it
        self._listing: list[str] = []
        num_rows: list[int] = []
        largest = 0
        for number, file in enumerate(self.files):
            about = self._open(file).metadata
            self._listing.append(f"{file.name} {file.stat().st_size} {about.num_rows}")
            for group in range(about.num_row_groups):
                self._groups.append((number, group))
                num_rows.append(about.row_group(group).num_rows)
                largest = max(largest, about.row_group(group).total_byte_size)
        self._ends = list(accumulate(num_rows))
        if not self._ends or self._ends[-1] == 0:
            raise InputError(f"{path} holds no rows of Parquet files (*.parquet); put them there")
        if largest > LARGE_GROUP_BYTES:
            logger.warning(
                "%s has row groups of up to %.0f MB, each read whole for one image; write it with smaller ones",
                path, largest / 1e6,
            )  # fmt: skip

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, i: int) -> bytes:
        data = self._value(i, self.image_column)
        data = data.get("bytes") if isinstance(data, dict) else data
        if data is None:
            raise OSError(f"{self.id(i)} has no bytes in column '{self.image_column}'")
        return data

    def id(self, i: int) -> str:
        number, row = self._place(i)
        file, group = self._groups[number]
        return f"{self.files[file].name} group {group} row {row}"

    def label(self, i: int) -> str | None:
        value = None if self.label_column is None else self._value(i, self.label_column)
        return None if value is None else str(value)

    def fingerprint(self) -> str:
        return digest([self.image_column, self.label_column, *self._listing])

    def _open(self, file: Path) -> pq.ParquetFile:
        """A file that has the columns asked for."""
        try:
            opened = pq.ParquetFile(file)
        except FileNotFoundError as error:
            raise InputError(f"{file} does not exist; mend the path of the source") from error
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is no whole Parquet file ({error}); fetch it again or take it away") from error
        schema = opened.schema_arrow
        for column in (self.image_column, self.label_column):
            if column is not None and schema.get_field_index(column) < 0:
                raise InputError(f"{file} has no column '{column}', only {', '.join(schema.names)}; name one of them")
        kind = schema.field(self.image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(f"{file}: column '{self.image_column}' holds {kind}, no bytes of images; name another")
        return opened

    def _place(self, i: int) -> tuple[int, int]:
        """The row group of row i, and which of the group's rows it is."""
        number = bisect_right(self._ends, i)
        return number, i - (self._ends[number - 1] if number else 0)

    def _value(self, i: int, column: str) -> Any:
        number, row = self._place(i)
        return self._column(number, column)[row].as_py()

    def _column(self, number: int, column: str) -> pa.ChunkedArray:
        """A column of a row group, kept if read lately; raises OSError where it can't be read."""
        file, group = self._groups[number]
        with self._lock:  # Arrow's readers are not to be shared, and two threads should not read the same group
            key = (number, column)
            if key not in self._cache:
                try:
                    with pq.ParquetFile(self.files[file]) as opened:
                        table = opened.read_row_group(group, columns=[column], use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise OSError(f"{self.files[file]}, row group {group}: {error}") from error
                self._cache[key] = table.column(column)
                while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > self._cache_bytes:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]
