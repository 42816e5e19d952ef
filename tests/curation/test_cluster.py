"""Spherical k-means: it improves, repeats itself, and finds clusters that are there."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation import cluster
from dinov2.curation.cluster import assign, spherical_kmeans


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_kmeans_objective_never_falls_and_rises() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((600, 8)))
    objective = spherical_kmeans(vectors, num_clusters=30, num_iterations=15, seed=0).objective
    assert len(objective) == 16
    assert (np.diff(objective) >= -1e-7).all()
    assert objective[-1] > objective[0] + 0.02


def test_kmeans_repeats_itself_and_depends_on_the_seed() -> None:
    vectors = unit(np.random.default_rng(1).standard_normal((500, 8)))
    a, b, c = (spherical_kmeans(vectors, num_clusters=20, num_iterations=5, seed=seed) for seed in (3, 3, 4))
    assert a.centroids.tobytes() == b.centroids.tobytes()
    assert a.centroids.tobytes() != c.centroids.tobytes()


def test_kmeans_finds_planted_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "BLOCK_ROWS", 64)
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 10, 500)
    vectors = unit(np.eye(10, 24)[truth] + 0.05 * rng.standard_normal((500, 24)))
    found = spherical_kmeans(vectors, num_clusters=10, num_iterations=10, seed=0)
    assert len(set(zip(truth.tolist(), found.assignment.tolist(), strict=True))) == 10
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


def test_kmeans_of_fewer_distinct_vectors_than_clusters_ends() -> None:
    vectors = unit(np.repeat(np.random.default_rng(3).standard_normal((4, 6)), 10, axis=0))
    found = spherical_kmeans(vectors, num_clusters=9, num_iterations=3, seed=0)
    assert found.objective[-1] == pytest.approx(1, abs=1e-6)


def test_kmeans_of_fewer_vectors_than_clusters_has_a_cluster_a_vector() -> None:
    found = spherical_kmeans(np.eye(4, dtype=np.float32), num_clusters=5, num_iterations=1, seed=0)
    assert sorted(found.assignment.tolist()) == [0, 1, 2, 3]


def test_assign_takes_the_nearest_centroid() -> None:
    index, cosine = assign(unit(np.array([[1.0, 0.1], [0.2, 1.0]])), np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(index, [0, 1])
    np.testing.assert_allclose(cosine, [0.995, 0.981], atol=1e-3)
