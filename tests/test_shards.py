"""Shards: plain tars that read back what was written, and readers that notice when a manifest does not match."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dinov2.params import InputError
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams

IMAGES = [b"\xff\xd8\xff" + bytes([i]) * (700 * i + 1) for i in range(5)]
MIMES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/avif"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache="", remote=None))


def write(store: Store, folder: Path) -> list[dict[str, Any]]:
    with ShardWriter(store, folder, shard_mb=1) as writer:
        for data, mime in zip(IMAGES, MIMES, strict=True):
            writer.add(data, {"mime": mime, "url": "http://h.example/a"})
    return writer.rows


def test_shard_is_a_tar_that_reads_back_in_any_order(store: Store, tmp_path: Path) -> None:
    rows = write(store, tmp_path / "work")
    reader = ShardReader(store)
    assert [reader.read(row) for row in reversed(rows)] == IMAGES[::-1]
    reader.close()
    with tarfile.open(store.local(rows[0]["shard"])) as tar:
        names = tar.getnames()
        assert [name.partition(".")[2] for name in names[::2]] == ["jpg", "png", "webp", "gif", "avif"]
        assert {name.partition(".")[2] for name in names[1::2]} == {"json"}
        about = tar.extractfile(names[-1])
        assert about is not None
        assert json.load(about) == {"mime": "image/avif", "url": "http://h.example/a"}
    assert write(store, tmp_path / "again") == rows


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0},
        {"offset": -512},
        {"offset": 100},
        {"length": 699},
        {"length": -1},
        {"length": 1 << 60},
        {"id": "0" * 64},
    ],
)
def test_row_that_does_not_match_its_shard_is_an_error(store: Store, tmp_path: Path, change: dict[str, Any]) -> None:
    rows = write(store, tmp_path / "work")
    reader = ShardReader(store)
    with pytest.raises(OSError, match=r"does not hold"):
        reader.read({**rows[1], **change})
    with pytest.raises(OSError, match=r"does not hold"):
        reader.read({**rows[1], "offset": rows[2]["offset"], "length": rows[2]["length"]})  # whole, but another's
    reader.close()


def test_shard_that_is_cut_short_gives_what_it_has(store: Store, tmp_path: Path) -> None:
    rows = write(store, tmp_path / "work")
    path = store.local(rows[0]["shard"])
    path.write_bytes(path.read_bytes()[: rows[3]["offset"] + 10])
    reader = ShardReader(store)
    assert [reader.read(row) for row in rows[:3]] == IMAGES[:3]
    with pytest.raises(OSError, match="is cut short: 10 of"):
        reader.read(rows[3])
    with pytest.raises(OSError, match="is cut short: it ends before"):
        reader.read(rows[4])
    reader.close()


def test_shard_that_is_absent_is_an_input_error(store: Store, tmp_path: Path) -> None:
    rows = write(store, tmp_path / "work")
    store.local(rows[0]["shard"]).unlink()
    with pytest.raises(InputError, match="is not in the store"):
        ShardReader(store).read(rows[0])
