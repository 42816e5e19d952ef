"""Parquet files: rows at random, several files and row groups, both ways to hold bytes, and damaged files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2.data.parquet import ParquetSource
from dinov2.params import InputError


def write(path: Path, images: Any, labels: Any, rows_a_group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=rows_a_group)
    return path


def opened(path: Path, **options: Any) -> ParquetSource:
    return ParquetSource(path, image_column="image", label_column="label", **options)


def test_parquet_source_reads_rows_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [b"7", b"8"], [1, None])
    write(tmp_path / "sub/a.parquet", pa.array([], pa.large_binary()), pa.array([], pa.string()))
    write(tmp_path / "a.parquet", [f"{number}".encode() for number in range(7)], list(range(7)))
    source = opened(tmp_path)
    assert len(source) == 9
    assert [source.read(i) for i in (8, 0, 6, 3, 7)] == [b"8", b"0", b"6", b"3", b"7"]
    assert [source.label(i) for i in (0, 6, 7, 8)] == ["0", "6", "1", None]
    assert source.id(4) == "a.parquet group 1 row 1"
    assert ParquetSource(tmp_path / "b.parquet", image_column="image", label_column=None).label(0) is None


def test_parquet_source_reads_structs_with_bytes(tmp_path: Path) -> None:
    images = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None]
    source = opened(write(tmp_path / "a.parquet", images, ["x", "y", "z"]))
    assert source.read(0) == b"one"
    for row in (1, 2):
        with pytest.raises(OSError, match=f"row {row} has no bytes"):
            source.read(row)


def test_parquet_source_keeps_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [bytes([number]) * 1000 for number in range(40)], list(range(40)), 4)
    source = opened(path, cache_bytes=9000)
    for i in (*range(40), 0, 39, 17):
        assert source.read(i) == bytes([i]) * 1000
        assert sum(kept.nbytes for kept in source._cache.values()) <= 9000


def test_parquet_source_fingerprint_changes_with_files_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"1"], ["x"])
    found = {opened(path).fingerprint(), ParquetSource(path, image_column="image", label_column=None).fingerprint()}
    write(path, [b"1", b"2"], ["x", "y"])
    assert len(found | {opened(path).fingerprint()}) == 3


def test_parquet_source_without_the_column_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"1"], ["x"])
    with pytest.raises(InputError, match="no column 'picture', only image, label"):
        ParquetSource(path, image_column="picture", label_column=None)
    with pytest.raises(InputError, match="holds string, no bytes"):
        ParquetSource(path, image_column="label", label_column=None)


def test_parquet_source_that_is_cut_short_or_no_parquet_or_absent_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"1" * 500] * 9, ["x"] * 9)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is no whole Parquet file"):
        opened(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="is no whole Parquet file"):
        opened(path)
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no rows"):
        opened(tmp_path / "empty")


def test_parquet_source_damaged_in_the_middle_is_a_bad_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [bytes([number]) * 500 for number in range(9)], ["x"] * 9)
    source = opened(path)
    data = bytearray(path.read_bytes())
    data[20:400] = b"\xff" * 380
    path.write_bytes(data)
    with pytest.raises(OSError, match="row group 0"):
        source.read(1)
    assert source.read(8) == bytes([8]) * 500
    path.unlink()
    with pytest.raises(OSError, match=r"a\.parquet, row group 1"):
        source.read(4)
