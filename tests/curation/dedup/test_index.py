"""faiss finds the same pairs with the same cosines as our join."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.dedup.index import faiss_pairs_above
from dinov2.curation.dedup.join import EXACT, pairs_above
from dinov2.curation.dedup.products import NumpyEngine

pytest.importorskip("faiss")


def clustered(num: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((20, 32))
    vectors = centres[rng.integers(0, 20, num)] + 0.5 * rng.standard_normal((num, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("others", [None, clustered(200, 2)], ids=["among themselves", "two sets"])
def test_faiss_equals_our_join(others: NDArray[np.float32] | None) -> None:
    vectors = clustered(400, 1)
    exact = pairs_above(vectors, others, 0.8, EXACT, NumpyEngine())
    assert len(exact.first) > 100
    for ours, theirs in zip(exact, faiss_pairs_above(vectors, others, 0.8), strict=True):
        np.testing.assert_array_equal(ours, theirs)
