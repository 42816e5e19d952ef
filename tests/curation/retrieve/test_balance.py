"""Balanced sampling: numbers are divided evenly, and a rare kind of image is not drowned by a common one."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2.curation.params import BalancedParams, ClusterParams
from dinov2.curation.retrieve.balance import Tree, balanced_sample, divide, first_of_each, grow_tree
from dinov2.curation.retrieve.blocks import InMemory
from dinov2.curation.retrieve.cluster import assign

CPU = torch.device("cpu")
CLUSTERS = ClusterParams(seed=0, num_clusters=24, num_iterations=10, precision="fp32")


def balance(**changes: object) -> BalancedParams:
    values = {
        "kind": "balanced", "coarser": [4], "num_resamplings": 1, "num_resampled": 5, "num_images": 60,
        "pick": "closest",
    }  # fmt: skip
    return BalancedParams.model_validate(values | changes)


@pytest.fixture(scope="module")
def crowded() -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Four kinds of vectors, of which the first is 50 times as frequent as the others."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(4), [1500, 30, 30, 30])
    vectors = np.eye(4, 12)[kind] + 0.1 * rng.standard_normal((len(kind), 12))
    order = rng.permutation(len(kind))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit[order].astype(np.float16), kind[order]


def sample(vectors: NDArray[np.float16], params: BalancedParams) -> NDArray[np.bool_]:
    pool = InMemory(vectors)
    tree = grow_tree(pool, CLUSTERS, params, CPU)
    index, cosine = assign(pool, tree.centroids, precision="fp32", device=CPU)
    return balanced_sample(tree, index, cosine, params, seed=0)


@pytest.mark.parametrize("pick", ["closest", "random"])
def test_balanced_sample_takes_as_many_of_each_kind(
    crowded: tuple[NDArray[np.float16], NDArray[np.int64]], pick: str
) -> None:
    vectors, kind = crowded
    counts = np.bincount(kind[sample(vectors, balance(pick=pick))], minlength=4)
    assert counts.sum() == 60
    assert counts.min() >= 12, counts  # at random it would be one


def test_balanced_sample_of_more_than_there_are_takes_all(
    crowded: tuple[NDArray[np.float16], NDArray[np.int64]]
) -> None:
    assert sample(crowded[0], balance(num_images=5000)).all()


def test_balanced_sample_divides_down_the_levels() -> None:
    """Finest clusters 0, 1 in coarse 0 and 2 in coarse 1: half of the images are to come from 2, as far as it has."""
    tree = Tree(np.eye(3, dtype=np.float32), [np.array([0, 0, 1], np.int32), np.array([0, 0], np.int32)])
    index = np.repeat([0, 1, 2], [10, 10, 10]).astype(np.int32)
    cosine = np.linspace(0.5, 1, 30, dtype=np.float32)
    chosen = balanced_sample(tree, index, cosine, balance(num_images=12), seed=0)
    np.testing.assert_array_equal(np.bincount(index[chosen]), [3, 3, 6])
    np.testing.assert_array_equal(np.flatnonzero(chosen)[:3], [7, 8, 9])  # the nearest to their centroid


def test_divide_is_even_and_spends_all() -> None:
    np.testing.assert_array_equal(divide(10, np.array([5, 1, 9, 0])), [5, 1, 4, 0])
    np.testing.assert_array_equal(divide(11, np.array([5, 1, 9, 9])), [4, 1, 3, 3])
    np.testing.assert_array_equal(divide(2, np.array([3, 3, 3])), [1, 1, 0])
    np.testing.assert_array_equal(divide(100, np.array([3, 4])), [3, 4])
    np.testing.assert_array_equal(divide(0, np.array([3, 4])), [0, 0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(0, 20, 12)
        total = int(rng.integers(0, 200))
        quota = divide(total, sizes)
        assert quota.sum() == min(total, sizes.sum())
        assert (quota <= sizes).all()
        assert np.ptp(quota[quota < sizes]) <= 1 if (quota < sizes).any() else True


def test_first_of_each_takes_the_smallest_keys() -> None:
    index, key = np.array([1, 0, 1, 1, 0]), np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    chosen = first_of_each(index, key, np.array([1, 1]))
    np.testing.assert_array_equal(np.flatnonzero(chosen), [1, 2])
