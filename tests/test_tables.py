"""Tables in pieces: ranges, joins, single rows, and what is no table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2 import tables
from dinov2.params import InputError
from dinov2.records import write_table
from dinov2.tables import (
    TableWriter,
    distinct,
    iter_rows,
    join_tables,
    num_rows,
    read_batches,
    read_rows,
    take_rows,
    write_pieces,
)  # fmt: skip

SCHEMA = pa.schema([("position", pa.int64()), ("text", pa.string())])


def test_ranges_cross_row_groups(tmp_path: Path) -> None:
    rows = [{"position": position, "text": "x"} for position in range(23)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "t.parquet", row_group_size=5)
    for start in range(0, 25, 3):
        for stop in range(start, 30, 4):
            assert read_rows(tmp_path / "t.parquet", SCHEMA, start, stop) == rows[start:stop]


@pytest.mark.parametrize("places", [[], [0, 22], [4, 5, 6, 9, 10], [7, 8], list(range(23))])
def test_taken_rows_are_those_at_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[int]
) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    rows = [{"position": position, "text": "x"} for position in range(23)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "t.parquet", row_group_size=5)
    taken = take_rows(tmp_path / "t.parquet", SCHEMA, np.array(places, int))
    assert [row for batch in taken for row in batch.to_pylist()] == [rows[place] for place in places]


@pytest.mark.parametrize("num", [0, 1, 12, 13, 24, 100])
def test_table_written_in_pieces_does_not_tell_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    """The file is that of a table written at once, in row groups of 12."""
    rows = [{"position": position, "text": "ab"[position % 2]} for position in range(num)]
    whole = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(whole, tmp_path / "at-once.parquet", row_group_size=12)
    monkeypatch.setattr(tables, "WHOLE_ROWS", 12)
    for size in (1, 5, 30):
        pieces = [whole[start : start + size] for start in range(0, num, size)]
        assert write_pieces(tmp_path / "pieces.parquet", SCHEMA, pieces) == num
        assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "at-once.parquet").read_bytes()
    monkeypatch.undo()
    write_table(tmp_path / "at-once.parquet", SCHEMA, rows)
    write_pieces(tmp_path / "pieces.parquet", SCHEMA, whole.to_batches(7))
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "at-once.parquet").read_bytes()


def test_row_group_of_long_texts_is_closed_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "WHOLE_BYTES", 1000)
    piece = pa.table({"position": [1], "text": ["x" * 600]}, schema=SCHEMA)
    assert write_pieces(tmp_path / "t.parquet", SCHEMA, [piece] * 5) == 5
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]


def test_joined_tables_hold_all_rows_in_order(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"position": part, "text": "y"}] * part
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"{part}.parquet")
    assert join_tables([tmp_path / f"{part}.parquet" for part in range(3)], SCHEMA, tmp_path / "all.parquet") == 3
    assert pq.read_table(tmp_path / "all.parquet")["position"].to_pylist() == [1, 2, 2]


def test_rows_written_one_by_one_are_read_one_by_one(tmp_path: Path) -> None:
    rows = [{"position": position, "text": "ab"[position % 2]} for position in range(7)]
    writer = TableWriter(tmp_path / "t.parquet", SCHEMA)
    for row in rows:
        writer.add(row)
    writer.close()
    assert writer.num_rows == num_rows(tmp_path / "t.parquet") == 7
    assert list(iter_rows(tmp_path / "t.parquet", SCHEMA)) == rows
    assert list(distinct(tmp_path / "t.parquet", SCHEMA, "text")) == ["a", "b"]


def test_no_table_and_another_schema_are_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="does not exist"):
        num_rows(path)
    path.write_bytes(b"PAR1 junk")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        num_rows(path)
    pq.write_table(pa.table({"position": ["no number"], "text": ["x"]}), path)
    with pytest.raises(InputError, match="no column 'position' of type int64"):
        read_rows(path, SCHEMA, 0, 1)


def test_pieces_do_not_reach_across_row_groups(tmp_path: Path) -> None:
    rows = [{"position": number, "text": "x"} for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "a.parquet", row_group_size=4)
    assert [len(batch) for batch in read_batches(tmp_path / "a.parquet", SCHEMA)] == [4, 4, 2]
