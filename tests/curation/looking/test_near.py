"""Nearest neighbours over blocks: the same as over all rows at once, and a sample that a seed fixes."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.curation.looking.near import Blocks, nearest
from dinov2.params import InputError
from dinov2.records import write_table
from dinov2.store import Store, StoreParams


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


def unit(num: int) -> NDArray[np.float32]:
    vectors = np.random.Generator(np.random.PCG64(num)).standard_normal((num, 16), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed(folder: Path, store: Store, vectors: NDArray[np.float32], block_rows: int) -> Path:
    starts = range(0, len(vectors), block_rows)
    names = [store_block(store, folder, vectors[start : start + block_rows]) for start in starts]
    (folder / "embeddings.json").write_text(json.dumps({"pool": {"copy": names}}))
    write_table(folder / "pool.parquet", EMBEDDED, [{"id": str(row)} for row in range(len(vectors))])
    return folder


def test_blocks_of_any_size_give_the_nearest_of_all_rows(tmp_path: Path, store: Store) -> None:
    vectors = unit(50)
    rounded = vectors.astype(np.float16).astype(np.float32)
    rounded /= np.linalg.norm(rounded, axis=1, keepdims=True)
    expected = rounded[:7] @ rounded.T
    np.fill_diagonal(expected, -1)
    for block_rows in (50, 8, 3):
        blocks = Blocks(embed(tmp_path, store, vectors, block_rows), "pool", "copy", store, max_rows=99, seed=0)
        rows = np.arange(7)
        np.testing.assert_allclose(blocks.rows.take(rows), rounded[:7], atol=1e-6)
        cosine, index = nearest(blocks.rows.take(rows), blocks, 5, leave_out=rows)
        np.testing.assert_array_equal(index, np.argsort(-expected, axis=1, kind="stable")[:, :5])
        np.testing.assert_allclose(cosine, -np.sort(-expected, axis=1)[:, :5], atol=1e-6)


def test_more_rows_than_wanted_are_whole_blocks_drawn_by_the_seed(tmp_path: Path, store: Store) -> None:
    folder = embed(tmp_path, store, unit(100), 10)
    drawn = [Blocks(folder, "pool", "copy", store, max_rows=25, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].num_chosen == 30
    assert drawn[0].chosen == drawn[1].chosen != drawn[2].chosen
    rows = drawn[0].draw_rows(1000, 0)
    np.testing.assert_array_equal(np.unique(rows // 10), drawn[0].chosen)
    assert len(rows) == 30
    assert {start for start, _ in drawn[0]} == {10 * block for block in drawn[0].chosen}


def test_of_equal_rows_the_earlier_ones_are_nearest(tmp_path: Path, store: Store) -> None:
    vectors = unit(40)
    vectors[5:] = vectors[5]
    for block_rows in (40, 7):
        blocks = Blocks(embed(tmp_path, store, vectors, block_rows), "pool", "copy", store, max_rows=40, seed=0)
        assert nearest(blocks.rows.take(np.array([5])), blocks, 4)[1].tolist() == [[5, 6, 7, 8]]
        itself = np.array([6])
        assert nearest(blocks.rows.take(itself), blocks, 4, leave_out=itself)[1].tolist() == [[5, 7, 8, 9]]


def test_a_row_that_is_no_number_is_near_to_nothing(tmp_path: Path, store: Store) -> None:
    vectors = unit(6)
    vectors[2] = np.nan
    blocks = Blocks(embed(tmp_path, store, vectors, 6), "pool", "copy", store, max_rows=6, seed=0)
    cosine, index = nearest(blocks.rows.take(np.array([0])), blocks, 6)
    assert cosine[0, list(index[0]).index(2)] == 0


def test_descriptors_that_are_not_listed_are_named(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="does not list semantic descriptors of pool"):
        Blocks(embed(tmp_path, store, unit(3), 3), "pool", "semantic", store, max_rows=3, seed=0)
