"""Exact search: against the plain definition, over block borders, on ties, in NumPy and in torch."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2 import search
from dinov2.search import pairs_above, top_k


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("QUERY_ROWS", 7), ("KEY_ROWS", 50), ("JOIN_ROWS", 40), ("VERIFY_ROWS", 11)):
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


@pytest.mark.parametrize("as_tensor", [False, True])
def test_pairs_above_among_themselves_come_once_and_all(as_tensor: bool) -> None:
    vectors = unit_vectors(130, 6, 6)
    pairs = pairs_above(torch.from_numpy(vectors) if as_tensor else vectors, None, 0.7)
    everything = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    first, second = np.nonzero(np.triu(everything >= 0.7, k=1))
    assert len(first) > 50
    np.testing.assert_array_equal(pairs.first, first)
    np.testing.assert_array_equal(pairs.second, second)
    np.testing.assert_allclose(pairs.cosine, everything[first, second], atol=1e-6)


def test_pairs_above_of_two_sets() -> None:
    vectors, others = unit_vectors(90, 6, 7), unit_vectors(70, 6, 8)
    others[11] = vectors[83]
    pairs = pairs_above(vectors, others, 0.999)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(83, 11)]
    assert pairs.cosine[0] == pytest.approx(1, abs=1e-6)


def test_pairs_above_of_nothing_is_empty() -> None:
    assert len(pairs_above(np.empty((0, 4), np.float32), None, 0.5).first) == 0
