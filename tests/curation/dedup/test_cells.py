"""The join by cells finds exactly the pairs one of whose rows visits the other's cell, each once."""

from pathlib import Path

import numpy as np
import pytest

from dinov2.curation.dedup.cells import (
    block_visits,
    choose_centroids,
    expected_load,
    join_cells,
    load_visits,
    nearest_cells,
    save_visits,
    visits_needed,
)
from dinov2.curation.dedup.join import EXACT, pairs_above
from dinov2.curation.dedup.products import NumpyEngine
from dinov2.curation.descriptors import Rows

BLOCK_ROWS = 70


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((8, 24))[rng.integers(0, 8, 200)] + 0.6 * rng.standard_normal((200, 24))
    return Rows([vectors / np.linalg.norm(vectors, axis=1, keepdims=True)])


@pytest.mark.parametrize("at_once", [9, 1000])
@pytest.mark.parametrize("num_visits", [1, 2, 8])
def test_pairs_are_those_whose_rows_meet(tmp_path: Path, rows: Rows, num_visits: int, at_once: int) -> None:
    centroids, vectors = choose_centroids(rows, 0), rows.read(0, len(rows))
    for block in range(3):
        part = rows.read(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        save_visits(tmp_path, block, block_visits(part, centroids, num_visits))
    visits, num_cells = load_visits(tmp_path, 3, BLOCK_ROWS), len(centroids)
    groups = [range(start, start + 10) for start in range(0, num_cells, 10)]
    found = [join_cells(group, rows, visits, 0.7, NumpyEngine(), at_once=at_once) for group in groups]
    pairs = [pair for part in found for pair in zip(*part, strict=True)]
    whole = pairs_above(vectors, None, 0.7, EXACT, NumpyEngine())
    meet = visits_needed(vectors[whole.first], vectors[whole.second], centroids) <= num_visits
    expected = list(zip(*(column[meet] for column in whole), strict=True))
    assert len(pairs) == len(set(pairs)) > 100
    assert sorted(pairs) == expected
    if num_visits == 1:
        assert len(expected) < len(whole.first)


def test_nearest_cells_come_in_order(rows: Rows) -> None:
    vectors, centroids = rows.read(0, 50), choose_centroids(rows, 0)
    cosine = np.take_along_axis(vectors @ centroids.T, nearest_cells(vectors, centroids, 5), axis=1)
    np.testing.assert_array_equal(cosine, np.sort(vectors @ centroids.T, axis=1)[:, :-6:-1])


def test_load_is_what_is_compared(rows: Rows) -> None:
    centroids, vectors = choose_centroids(rows, 0), rows.read(0, len(rows))
    places = nearest_cells(vectors, centroids, 4)
    owned = np.bincount(places[:, 0], minlength=len(centroids))
    compared = owned[places].sum()  # by every row, with the rows of the cells it visits
    assert expected_load(rows, centroids, 0)[4] == pytest.approx(2 * compared / len(rows) ** 2)
