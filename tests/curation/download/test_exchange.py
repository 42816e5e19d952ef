"""Rows that change hands: every taker gets its own, by position, whoever gave them."""

from pathlib import Path

import pyarrow as pa

from dinov2.curation.download.exchange import give, take

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
