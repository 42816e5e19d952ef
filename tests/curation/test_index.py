"""faiss finds the same pairs with the same cosines as our join."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.index import find_pairs

pytest.importorskip("faiss")


def clustered(num: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((20, 32))
    vectors = centres[rng.integers(0, 20, num)] + 0.5 * rng.standard_normal((num, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_faiss_equals_exact_among_themselves() -> None:
    vectors = clustered(400, 0)
    exact, other = (find_pairs(vectors, None, 0.8, method) for method in ("exact", "faiss"))
    assert len(exact.first) > 100
    for ours, theirs in zip(exact, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_faiss_equals_exact_between_two_sets() -> None:
    vectors, others = clustered(300, 1), clustered(200, 2)
    exact, other = (find_pairs(vectors, others, 0.8, method) for method in ("exact", "faiss"))
    assert len(exact.first) > 100
    for ours, theirs in zip(exact, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)
