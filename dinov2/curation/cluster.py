"""Spherical k-means: clusters of directions, by which retrieval finds images like a small set of seeds.

Starts from k-means++ on a seeded sample. Sums are taken in float64 over fixed blocks in their order, so that the result
depends on vectors, seed and numbers alone.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import csr_array

BLOCK_ROWS = 16384
SAMPLE_PER_CLUSTER = 32  # vectors a cluster among which k-means++ chooses


class Clusters(NamedTuple):
    """A clustering of n vectors."""

    centroids: Float[np.ndarray, "k d"]
    """Unit length, float32."""
    assignment: Int[np.ndarray, " n"]
    """Nearest centroid; the first of equals."""
    objective: list[float]
    """Mean cosine to the nearest centroid before each update, and at the end; never falls."""


def spherical_kmeans(
    vectors: Float[np.ndarray, "n d"], *, num_clusters: int, num_iterations: int, seed: int
) -> Clusters:
    """k-means by cosine of unit-length float32 vectors; appendix A.4 of the paper clusters the pool with it.

    A cluster that loses all its vectors takes the one that is farthest from its own centroid. Fewer vectors than
    `num_clusters` are a cluster each.
    """
    num_clusters = min(num_clusters, len(vectors))
    centroids = _first_centroids(vectors, num_clusters, np.random.Generator(np.random.PCG64(seed)))
    assignment, cosine = assign(vectors, centroids)
    objective = [float(cosine.mean(dtype=np.float64))]
    for _ in range(num_iterations):
        centroids = _update(vectors, assignment, cosine, centroids)
        assignment, cosine = assign(vectors, centroids)
        objective.append(float(cosine.mean(dtype=np.float64)))
    return Clusters(centroids, assignment, objective)


def assign(
    vectors: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nearest centroid of each vector and the cosine to it."""
    index, cosine = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        products = vectors[block] @ centroids.T
        index[block] = products.argmax(axis=1)
        cosine[block] = np.take_along_axis(products, index[block, None], axis=1)[:, 0]
    return index, cosine


def _first_centroids(
    vectors: NDArray[np.float32], num_clusters: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """k-means++: each next centroid is drawn with probability in proportion to 1 - cosine to the nearest one so far."""
    size = min(len(vectors), SAMPLE_PER_CLUSTER * num_clusters)
    sample = vectors[np.sort(rng.choice(len(vectors), size, replace=False))]
    chosen = [int(rng.integers(size))]
    distance = np.full(size, np.inf)
    for draw in rng.random(num_clusters - 1):
        distance = np.minimum(distance, np.clip(1 - (sample @ sample[chosen[-1]]).astype(np.float64), 0, None))
        distance[chosen[-1]] = 0
        total = np.cumsum(distance)
        if total[-1] > 0:
            chosen.append(int(np.searchsorted(total, draw * total[-1], side="right")))
        else:  # fewer distinct vectors than clusters
            chosen.append(int(np.setdiff1d(np.arange(size), chosen)[0]))
    return sample[chosen]


def _update(
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    cosine: NDArray[np.float32],
    centroids: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Mean directions of the clusters."""
    num_clusters = len(centroids)
    sums = np.zeros(centroids.shape, np.float64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        rows = assignment[start : start + BLOCK_ROWS]
        members = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(num_clusters, len(rows)))
        sums += members @ vectors[start : start + BLOCK_ROWS].astype(np.float64)
    empty = np.flatnonzero(np.bincount(assignment, minlength=num_clusters) == 0)
    sums[empty] = vectors[np.argsort(cosine, kind="stable")[: len(empty)]]
    lengths = np.linalg.norm(sums, axis=1)
    opposed = lengths < 1e-12  # members that cancel out have no mean direction: keep the old one
    sums[opposed], lengths[opposed] = centroids[opposed], 1
    return (sums / lengths[:, None]).astype(np.float32)
