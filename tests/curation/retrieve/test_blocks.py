"""Descriptors a block at a time: in any order, over several files; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinov2 import tables
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.curation.retrieve import blocks
from dinov2.curation.retrieve.blocks import InMemory, OnDisk, open_blocks, unusable
from dinov2.params import InputError
from dinov2.records import write_json, write_table
from dinov2.store import Store, StoreParams

VECTORS = np.eye(7, 8, dtype=np.float16)
ROWS: list[dict[str, Any]] = [{"id": str(number)} for number in range(7)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


def embedded(tmp_path: Path, store: Store, *parts: np.ndarray) -> list[str]:
    """An output of embed with these blocks of the pool."""
    names = [store_block(store, tmp_path, part) for part in parts]
    write_json(tmp_path / "embeddings.json", {"pool": {"semantic": names}})
    write_table(tmp_path / "pool.parquet", EMBEDDED, ROWS)
    return names


def opened(tmp_path: Path, store: Store, chosen: list[int]) -> OnDisk:
    write_table(tmp_path / "unique.parquet", EMBEDDED, [ROWS[row] for row in chosen])
    return open_blocks(tmp_path, "pool", "semantic", tmp_path / "unique.parquet", store)


def test_blocks_on_disk_follow_the_rows_of_a_table(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    embedded(tmp_path, store, VECTORS[:3], VECTORS[3:4], VECTORS[4:])
    found = opened(tmp_path, store, [0, 2, 3, 5, 6])
    np.testing.assert_array_equal(found.take(np.arange(5)), VECTORS[[0, 2, 3, 5, 6]])
    np.testing.assert_array_equal(found.subset(np.array([4, 1])).take(np.array([1, 0])), VECTORS[[2, 6]])


@pytest.mark.parametrize(("chosen", "first"), [([0, 3, 2], 2), ([1, 1], 1), ([5, 6, 0], 0)])
def test_blocks_on_disk_refuse_another_order_and_repeated_images(
    tmp_path: Path, store: Store, chosen: list[int], first: int
) -> None:
    embedded(tmp_path, store, VECTORS)
    with pytest.raises(InputError, match=rf"not in that order \(the first: {first}\); run embed, then dedup, again"):
        opened(tmp_path, store, chosen)


def test_blocks_on_disk_refuse_what_does_not_match(tmp_path: Path, store: Store) -> None:
    embedded(tmp_path, store, VECTORS[:3], VECTORS[3:5])
    with pytest.raises(InputError, match="5 semantic descriptors for 7 images"):
        opened(tmp_path, store, [0])
    embedded(tmp_path, store, VECTORS[:3], VECTORS[3:, :5])
    with pytest.raises(InputError, match="several sizes"):
        opened(tmp_path, store, [0])
    names = embedded(tmp_path, store, VECTORS)
    write_table(tmp_path / "other.parquet", EMBEDDED, [ROWS[0], {"id": "stranger"}, ROWS[6]])
    with pytest.raises(InputError, match=r"no descriptors of some images of pool .*the first: stranger"):
        open_blocks(tmp_path, "pool", "semantic", tmp_path / "other.parquet", store)
    store.local(names[0]).write_bytes(b"\x93NUMPY cut")
    with pytest.raises(InputError, match="is damaged"):
        opened(tmp_path, store, [0])


@pytest.mark.parametrize("block_rows", [2, 100])
def test_unusable_names_all_rows(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    vectors = VECTORS.copy()
    vectors[1], vectors[4], vectors[6] = np.nan, 0, 0.5
    np.testing.assert_array_equal(unusable(InMemory(vectors), torch.device("cpu")), [1, 4, 6])
