"""Spherical k-means: it improves, finds clusters that are there, and no block, process or precision changes a bit."""

from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from numpy.typing import NDArray

from dinov2.curation.params import Precision
from dinov2.curation.retrieve import blocks, nearest
from dinov2.curation.retrieve.blocks import InMemory
from dinov2.curation.retrieve.cluster import Clusters, assign, spherical_kmeans
from dinov2.curation.retrieve.nearest import Centroids, on_grid

CPU = torch.device("cpu")


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float16]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def drawn(num: int, dims: int, seed: int) -> NDArray[np.float16]:
    return unit(np.random.default_rng(seed).standard_normal((num, dims)))


def kmeans(
    vectors: NDArray[np.float16], num_clusters: int, *, iterations: int, seed: int = 0, precision: Precision = "fp32"
) -> Clusters:
    return spherical_kmeans(
        InMemory(vectors), num_clusters=num_clusters, num_iterations=iterations, seed=seed, precision=precision,
        device=CPU,
    )  # fmt: skip


def clusters_of(vectors: NDArray[np.float16], found: Clusters) -> NDArray[np.int32]:
    return assign(InMemory(vectors), found.centroids, precision="fp32", device=CPU)[0]


def by_definition(vectors: NDArray[np.float16], start: NDArray[np.float32], iterations: int) -> NDArray[np.float64]:
    """The same iterations, written down plainly."""
    centroids = start.astype(np.float64)
    for _ in range(iterations):
        index = (vectors.astype(np.float64) @ centroids.T).argmax(axis=1)
        sums = np.stack([vectors[index == k].astype(np.float64).sum(axis=0) for k in range(len(centroids))])
        centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return centroids


def test_kmeans_objective_never_falls_and_rises() -> None:
    objective = kmeans(drawn(600, 8, 0), 30, iterations=15).objective
    assert (np.diff(objective) >= -1e-7).all()
    assert objective[-1] > objective[0] + 0.02


def test_kmeans_skips_nothing_that_changes() -> None:
    """More iterations than it takes for most centroids to stand still."""
    vectors = drawn(3000, 6, 4)
    start = kmeans(vectors, 25, iterations=1).centroids
    plain = by_definition(vectors, start, 24)
    np.testing.assert_allclose(kmeans(vectors, 25, iterations=25).centroids, plain, atol=3e-6)


def test_kmeans_ends_when_nothing_moves() -> None:
    vectors = drawn(200, 4, 5)
    found = kmeans(vectors, 5, iterations=500)
    assert len(found.objective) < 500
    assert kmeans(vectors, 5, iterations=len(found.objective)).centroids.tobytes() == found.centroids.tobytes()


def test_kmeans_repeats_itself_and_depends_on_the_seed() -> None:
    vectors = drawn(500, 8, 1)
    a, b, c = (kmeans(vectors, 20, iterations=5, seed=seed) for seed in (3, 3, 4))
    assert a.centroids.tobytes() == b.centroids.tobytes()
    assert a.centroids.tobytes() != c.centroids.tobytes()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kmeans_is_the_same_in_any_blocks_and_precision(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    vectors = drawn(1500, 24, 2)
    whole = kmeans(vectors, 40, iterations=8)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 97)
    monkeypatch.setitem(nearest.CHUNK_NUMBERS, "cpu", 700)
    parts = kmeans(vectors, 40, iterations=8, precision=precision)
    assert parts.centroids.tobytes() == whole.centroids.tobytes()
    assert parts.objective == whole.objective


def test_kmeans_is_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    vectors = drawn(1000, 16, 3)
    np.save(tmp_path / "vectors.npy", vectors)
    code = """
import numpy as np
from dinov2.curation.retrieve import blocks
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
blocks.BLOCK_ROWS = 128
pool = blocks.InMemory(np.load(work / "vectors.npy"))
cpu = torch.device("cpu")
found = spherical_kmeans(pool, num_clusters=30, num_iterations=6, seed=0, precision="fp32", device=cpu)
index, cosine = assign(pool, found.centroids, precision="fp32", device=cpu)
np.savez(work / f"{rank()}.npz", centroids=found.centroids, index=index, cosine=cosine)
"""
    for code_of, said in ranks.finish(ranks.start(code, 2, tmp_path)):
        assert code_of == 0, said
    alone = kmeans(vectors, 30, iterations=6)
    index, cosine = assign(InMemory(vectors), alone.centroids, precision="fp32", device=CPU)
    for number in range(2):
        found = np.load(tmp_path / f"{number}.npz")
        assert found["centroids"].tobytes() == alone.centroids.tobytes()
        np.testing.assert_array_equal(found["index"], index)
        assert found["cosine"].tobytes() == cosine.tobytes()


def test_kmeans_finds_planted_clusters() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 10, 500)
    vectors = unit(np.eye(10, 24)[truth] + 0.02 * rng.standard_normal((500, 24)))
    found = kmeans(vectors, 10, iterations=10)
    assert len(set(zip(truth.tolist(), clusters_of(vectors, found).tolist(), strict=True))) == 10
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


def test_kmeans_fills_a_cluster_that_lost_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(400, 4, 6)
    start = np.concatenate([np.repeat(vectors[:1], 5, axis=0), vectors[1:4]]).astype(np.float32)
    monkeypatch.setattr("dinov2.curation.retrieve.cluster.first_centroids", lambda *_: start)
    assert len(np.unique(clusters_of(vectors, kmeans(vectors, 8, iterations=8)))) == 8


def test_kmeans_of_fewer_distinct_vectors_than_clusters_ends() -> None:
    vectors = np.repeat(drawn(4, 6, 3), 10, axis=0)
    assert kmeans(vectors, 9, iterations=3).objective[-1] == pytest.approx(1, abs=1e-3)


def test_kmeans_of_fewer_vectors_than_clusters_has_a_cluster_a_vector() -> None:
    vectors = np.eye(4, dtype=np.float16)
    assert sorted(clusters_of(vectors, kmeans(vectors, 5, iterations=1)).tolist()) == [0, 1, 2, 3]


def test_assign_takes_the_nearest_centroid() -> None:
    vectors = unit(np.array([[1.0, 0.1], [0.2, 1.0]]))
    index, cosine = assign(InMemory(vectors), np.eye(2, dtype=np.float32), precision="fp32", device=CPU)
    np.testing.assert_array_equal(index, [0, 1])
    np.testing.assert_allclose(cosine, [0.995, 0.981], atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nearest_tells_centroids_apart_that_float32_can_not(precision: Precision) -> None:
    """Two centroids one step of the grid apart, and two that are equal: the first is taken."""
    centroids = on_grid(torch.nn.functional.normalize(torch.ones(4, 384), dim=1))
    centroids[1, 7] += 2.0**-24
    centroids[3, 7] += 2.0**-24
    vectors = torch.full((5, 384), 384**-0.5).half()
    assert Centroids(centroids, precision).nearest(vectors).tolist() == [1] * 5


def test_rivals_misses_none() -> None:
    vectors, centroids = torch.from_numpy(drawn(500, 16, 7)), on_grid(torch.from_numpy(drawn(20, 16, 8)))
    own = centroids.float()[Centroids(centroids[:10], "fp32").nearest(vectors)]
    others = Centroids(centroids[10:], "bf16")
    exact = (vectors.double() @ centroids[10:].double().T).amax(1) >= (vectors.double() * own.double()).sum(1)
    assert set(exact.nonzero()[:, 0].tolist()) <= set(others.rivals(vectors, own).tolist())
    assert len(others.rivals(vectors, own)) < 400
