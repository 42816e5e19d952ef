"""Rows read from blocks, and those that can't be compared."""

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dinov2.curation.descriptors import EMBEDDED, Rows, open_rows, store_block
from dinov2.records import write_json, write_table
from dinov2.store import Store, StoreParams


def test_rows_are_of_unit_length_and_in_their_place() -> None:
    drawn = np.random.default_rng(0).standard_normal((50, 8))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    half = drawn.astype(np.float16)
    rows = Rows([half[:20], half[:0], half[20:21], half[21:]])
    assert (len(rows), rows.dims) == (50, 8)
    everything = rows.read(0, 99)
    np.testing.assert_allclose(np.linalg.norm(everything, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(everything, drawn, atol=1e-3)
    np.testing.assert_array_equal(rows.read(15, 30), everything[15:30])
    index = np.array([49, 0, 20, 20, 19])
    np.testing.assert_array_equal(rows.take(index), everything[index])
    assert rows.read(60, 70).shape == (0, 8)


def test_rows_that_cannot_be_compared_are_zeros() -> None:
    block = np.zeros((5, 4), np.float16)
    block[:, 0] = [1, np.nan, np.inf, 2, 0]
    np.testing.assert_array_equal(Rows([block]).read(0, 5)[:, 0], [1, 0, 0, 0, 0])


@pytest.fixture
def few_files() -> Iterator[None]:
    """No more than 64 open files at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_many_blocks_need_few_open_files(tmp_path: Path) -> None:
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))
    vectors = np.eye(100, dtype=np.float32)
    names = [store_block(store, tmp_path, row[None]) for row in vectors]
    write_json(tmp_path / "embeddings.json", {"pool": {"copy": names}})
    write_table(tmp_path / "pool.parquet", EMBEDDED, [{"id": str(number)} for number in range(100)])
    rows = open_rows(tmp_path, ["pool"], "copy", store)
    np.testing.assert_array_equal(rows.read(0, 100), vectors)
    np.testing.assert_array_equal(rows.take(np.array([99, 3, 50])), vectors[[99, 3, 50]])
