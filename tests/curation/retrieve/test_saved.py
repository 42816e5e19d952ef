"""k-means, its levels and the search go on from where they were interrupted, to the same bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from numpy.typing import NDArray

from dinov2.curation.params import BalancedParams, ClusterParams, SeededParams
from dinov2.curation.retrieve import blocks, saved, seeds
from dinov2.curation.retrieve.balance import Tree, grow_tree
from dinov2.curation.retrieve.blocks import InMemory
from dinov2.curation.retrieve.cluster import spherical_kmeans
from dinov2.curation.retrieve.saved import Computation, Saved
from dinov2.curation.retrieve.seeds import Choices, Seeds, retrieve
from tasks.damage import damage_forgotten
from tasks.follow import JobFailedError

CPU = torch.device("cpu")
CLUSTERS = ClusterParams(seed=0, num_clusters=20, num_iterations=8, precision="fp32")
LEVELS = BalancedParams(
    kind="balanced", coarser=[5], num_resamplings=1, num_resampled=3, num_images=10, pick="closest"
)
SEEDED = SeededParams(
    kind="seeds", sample_based_from=5, num_neighbors=4, num_from_cluster=9, min_cosine=-1.0, max_per_source=None
)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 64)
    monkeypatch.setattr(seeds, "PIECE", 9)


def vectors(num: int, seed: int) -> NDArray[np.float16]:
    rows = np.random.default_rng(seed).standard_normal((num, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


class Lost(InMemory):
    """Vectors of a disk that is lost after some reads, and found again."""

    def __init__(self, rows: NDArray[np.float16], num_reads: int, reads: list[int] | None = None) -> None:
        super().__init__(rows)
        self.num_reads, self.reads = num_reads, reads if reads is not None else []

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        self.reads.append(len(rows))
        if len(self.reads) > self.num_reads:
            raise OSError("lost")
        return super().take(rows)

    def subset(self, rows: NDArray[np.int64]) -> "Lost":
        return Lost(self.vectors[rows], self.num_reads, self.reads)


def interrupted(compute: Callable[[Lost, Saved], object], rows: NDArray[np.float16], work: Path) -> list[int]:
    """Reads of each start until one ends: each gets a few more than what a new beginning needs to come further."""
    num_reads, ended = [], False
    while not ended:
        pool = Lost(rows, 16)
        try:
            compute(pool, Saved(work, CPU))
            ended = True
        except OSError:
            pass
        num_reads.append(len(pool.reads))
        assert len(num_reads) < 100
    return num_reads


def test_kmeans_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    rows, found = vectors(400, 0), {}

    def compute(pool: InMemory, states: Saved) -> None:
        found["clusters"] = spherical_kmeans(pool, **CLUSTERS.model_dump(), device=CPU, saved=states.next())

    compute(InMemory(rows), Saved(tmp_path / "alone", CPU))
    alone = found["clusters"]
    assert len(interrupted(compute, rows, tmp_path / "interrupted")) > 3
    assert found["clusters"].centroids.tobytes() == alone.centroids.tobytes()
    assert found["clusters"].objective == alone.objective
    assert len(alone.objective) == 8


def test_levels_go_on_to_the_same_bits(tmp_path: Path) -> None:
    rows = vectors(400, 1)
    found: dict[str, Tree] = {}

    def compute(pool: InMemory, states: Saved) -> None:
        found["tree"] = grow_tree(pool, CLUSTERS, LEVELS, CPU, states)

    compute(InMemory(rows), Saved(tmp_path / "alone", CPU))
    alone = found["tree"]
    assert len(list((tmp_path / "alone").iterdir())) == 4  # two k-means a level
    assert len(interrupted(compute, rows, tmp_path / "interrupted")) > 3
    assert found["tree"].centroids.tobytes() == alone.centroids.tobytes()
    np.testing.assert_array_equal(found["tree"].parents[0], alone.parents[0])


def test_search_goes_on_to_the_same_choices(tmp_path: Path) -> None:
    rows, given = vectors(400, 2), vectors(25, 3)
    homes, own = (np.arange(num, dtype=np.int32) % 3 for num in (400, 25))
    sources = ["many"] * 12 + [f"few {number // 2}" for number in range(13)]
    found: dict[str, Choices] = {}

    def compute(pool: InMemory, states: Saved) -> None:
        found["choices"] = retrieve(
            SEEDED, seeds=Seeds(InMemory(given), sources, own), pool=pool, pool_clusters=homes, device=CPU,
            saved=states.next(),
        )  # fmt: skip

    compute(InMemory(rows), Saved(tmp_path / "alone", CPU))
    alone = found["choices"]
    assert len(interrupted(compute, rows, tmp_path / "interrupted")) > 3
    for column, other in zip(found["choices"], alone, strict=True):
        np.testing.assert_array_equal(column, other)


def test_other_processes_go_on_from_what_one_saved(tmp_path: Path) -> None:
    rows = vectors(400, 0)
    np.save(tmp_path / "vectors.npy", rows)
    alone = spherical_kmeans(InMemory(rows), **CLUSTERS.model_dump(), device=CPU)
    few = CLUSTERS.model_copy(update={"num_iterations": 3})
    spherical_kmeans(InMemory(rows), **few.model_dump(), device=CPU, saved=Saved(tmp_path / "states", CPU).next())
    code = """
import numpy as np
from dinov2.curation.retrieve import blocks
from dinov2.curation.retrieve.cluster import spherical_kmeans
from dinov2.curation.retrieve.saved import Saved
blocks.BLOCK_ROWS = 64
pool, cpu = blocks.InMemory(np.load(work / "vectors.npy")), torch.device("cpu")
states = Saved(work / "states" if rank() == 0 else work / "unseen", cpu)  # a file system that is not up to date
found = spherical_kmeans(
    pool, num_clusters=20, num_iterations=8, seed=99, precision="fp32", device=cpu, saved=states.next()
)
np.savez(work / f"{rank()}.npz", centroids=found.centroids, objective=found.objective)
"""
    for exit_code, said in ranks.finish(ranks.start(code, 2, tmp_path)):
        assert exit_code == 0, said
    for number in range(2):
        found = np.load(tmp_path / f"{number}.npz")
        assert found["centroids"].tobytes() == alone.centroids.tobytes()  # of seed 0, so they did not begin anew
        assert found["objective"].tolist() == alone.objective


def test_states_are_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "SAVE_EVERY_S", 3600.0)
    state = Computation(tmp_path / "1.npz", CPU)
    state.save(number=1)
    assert state.load() is None
    monkeypatch.setattr(saved, "SAVE_EVERY_S", 0.0)
    state.save(number=2)
    found = state.load()
    assert found is not None
    assert found["number"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["1.npz"]


@pytest.mark.parametrize("num_bytes", [0, 1, 500])
def test_a_state_that_was_cut_short_is_removed_and_made_again(tmp_path: Path, num_bytes: int) -> None:
    rows = vectors(400, 0)

    def found() -> bytes:
        states = Saved(tmp_path / "work" / "saved", CPU)
        clusters = spherical_kmeans(InMemory(rows), **CLUSTERS.model_dump(), device=CPU, saved=states.next())
        return clusters.centroids.tobytes()

    alone = found()
    (state,) = (tmp_path / "work" / "saved").iterdir()
    state.write_bytes(state.read_bytes()[:num_bytes])
    with pytest.raises(JobFailedError, match="damaged; start it again"), damage_forgotten(tmp_path / "work"):
        found()
    assert not state.exists()
    assert found() == alone
