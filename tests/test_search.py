"""Exact search: against the plain definition, over block borders, on ties, in NumPy and in torch."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2 import search
from dinov2.search import top_k


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("QUERY_ROWS", 7), ("KEY_ROWS", 50)):
        monkeypatch.setattr(search, name, rows)


def unit_vectors(num: int, dims: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, dims))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_top_k_equals_full_sort() -> None:
    queries, keys = unit_vectors(20, 16, 0), unit_vectors(180, 16, 1)
    cosine, index = top_k(queries, keys, 5)
    everything = queries.astype(np.float64) @ keys.astype(np.float64).T
    expected = np.argsort(-everything, axis=1)[:, :5]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(cosine, np.take_along_axis(everything, expected, axis=1), atol=1e-6)


def test_top_k_of_equal_keys_takes_the_first() -> None:
    keys = unit_vectors(160, 16, 2)
    keys[[3, 77, 149]] = keys[120]
    _, index = top_k(keys[120:121], keys, 4)
    np.testing.assert_array_equal(index, [[3, 77, 120, 149]])


def test_top_k_of_more_equal_keys_than_candidates_takes_the_first() -> None:
    queries, keys = unit_vectors(9, 16, 6), unit_vectors(180, 16, 7)
    keys[20:170] = keys[20]
    queries[[2, 8]] = keys[20]
    everything = (queries.astype(np.float64)[:, None] * keys.astype(np.float64)).sum(axis=2).astype(np.float32)
    expected = np.argsort(-everything, axis=1, kind="stable")[:, :5]
    assert expected[2].tolist() == [20, 21, 22, 23, 24]
    np.testing.assert_array_equal(top_k(queries, keys, 5)[1], expected)
    cosine, index = top_k(torch.from_numpy(queries), torch.from_numpy(keys), 5)
    np.testing.assert_array_equal(index.numpy(), expected)
    np.testing.assert_array_equal(cosine.numpy(), np.take_along_axis(everything, expected, axis=1))


def test_top_k_of_all_keys_is_a_permutation() -> None:
    keys = unit_vectors(60, 8, 3)
    _, index = top_k(keys[:3], keys, 60)
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(60), (3, 1)))


def test_top_k_of_tensors_equals_that_of_arrays() -> None:
    queries, keys = unit_vectors(20, 16, 4), unit_vectors(180, 16, 5)
    cosine, index = top_k(torch.from_numpy(queries), torch.from_numpy(keys), 5)
    expected_cosine, expected_index = top_k(queries, keys, 5)
    np.testing.assert_array_equal(index.numpy(), expected_index)
    np.testing.assert_array_equal(cosine.numpy(), expected_cosine)
