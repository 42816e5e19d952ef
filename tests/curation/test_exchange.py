"""Rows that change hands: every taker gets its own, by position, whoever gave them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dinov2.curation.exchange import give, join_tables, read_range, take

SCHEMA = pa.schema([("position", pa.int64()), ("text", pa.string())])


def test_every_taker_gets_its_rows_in_order(tmp_path: Path) -> None:
    rows = [(position, None if position % 5 == 0 else f"row {position}") for position in range(40)]
    for giver in range(3):
        mine = rows[::-1][giver::3]
        give(tmp_path / f"{giver}", SCHEMA, mine, [position % 4 for position, _ in mine], 6)
    paths = [tmp_path / f"{giver}" for giver in (2, 0, 1)]
    assert [take(paths, taker) for taker in range(6)] == [rows[taker::4] if taker < 4 else [] for taker in range(6)]


def test_nothing_to_give_is_a_file_all_the_same(tmp_path: Path) -> None:
    give(tmp_path / "none", SCHEMA, [], [], 3)
    assert [take([tmp_path / "none"], taker) for taker in range(3)] == [[], [], []]


def test_ranges_cross_row_groups(tmp_path: Path) -> None:
    rows = [{"position": position, "text": "x"} for position in range(23)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "t.parquet", row_group_size=5)
    with pq.ParquetFile(tmp_path / "t.parquet") as table:
        for start in range(0, 25, 3):
            for stop in range(start, 30, 4):
                assert read_range(table, SCHEMA.names, start, stop) == rows[start:stop]


def test_joined_tables_hold_all_rows_in_order(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"position": part, "text": "y"}] * part
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"{part}.parquet")
    join_tables(tmp_path / "all.parquet", SCHEMA, [tmp_path / f"{part}.parquet" for part in range(3)])
    assert pq.read_table(tmp_path / "all.parquet")["position"].to_pylist() == [1, 2, 2]
