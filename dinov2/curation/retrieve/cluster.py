"""Spherical k-means: clusters of directions, by which retrieval finds images like a small set of seeds.

The result depends on vectors, seed and numbers alone; threads, the size of blocks, the number of processes and the
precision of the first products change not a bit of it. Nearest centroids are decided exactly (nearest.py), and the sums
of vectors are exact too: of multiples of 2^-24, fewer than 2^29 of them, in float64, where no addition rounds. So
blocks may be summed in any order, by any process, and sums may be changed by what moved instead of being taken anew.

Only what can change is computed: a vector whose centroid stands still is compared with the centroids that moved.
Memory is that of a block, of the centroids in a few precisions, and four bytes a vector.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from dinov2.curation.params import Precision
from dinov2.curation.retrieve.blocks import Blocks, own_blocks, rows_of
from dinov2.curation.retrieve.first_centroids import first_centroids
from dinov2.curation.retrieve.nearest import Centroids, on_grid
from dinov2.curation.retrieve.saved import Computation
from dinov2.distributed import all_reduce_sum

log = logging.getLogger(__name__)
MAX_SIZE = 2**29  # vectors whose sum is exact
MOST_MOVED = 0.8  # share of centroids above which there is nothing to gain from those that stand still
SPLIT = 2.0**-6  # how far the two halves of a split cluster start from each other


class Clusters(NamedTuple):
    """A clustering."""

    centroids: Float[np.ndarray, "k d"]
    """Of unit length but for rounding to multiples of 2^-24, float32."""
    objective: list[float]
    """Mean cosine to the nearest centroid before each update; ends early where nothing moves any more."""


def spherical_kmeans(
    blocks: Blocks, *, num_clusters: int, num_iterations: int, seed: int, precision: Precision, device: torch.device,
    saved: Computation | None = None,
) -> Clusters:  # fmt: skip
    """k-means by cosine; appendix A.4 of the paper clusters the pool with it. To be called by all processes together.

    A cluster that loses all its vectors starts again beside the largest. Fewer vectors than `num_clusters` are a
    cluster each. It goes on from what is `saved`: where the centroids are; what is nearest to them is found out anew.
    """
    num = blocks.num_rows()
    own = own_blocks(blocks)
    before = saved.load() if saved is not None else None
    if before is None:
        centroids = first_centroids(blocks, min(num_clusters, num), seed, device)
        before = {"centroids": centroids, "moved": np.ones(len(centroids), bool), "objective": np.empty(0)}
        if saved is not None:
            saved.save(**before)
    centroids, moved, objective = before["centroids"], before["moved"], before["objective"].tolist()
    assignment = {number: torch.empty(0, dtype=torch.int32) for number in own}
    sums = np.zeros(centroids.shape, np.float64)
    sizes = np.zeros(len(centroids), np.int64)
    while moved.any() and len(objective) < num_iterations:
        state = _State(centroids, moved, precision, device)
        for number in own:
            vectors = torch.from_numpy(blocks.take(rows_of(blocks, number))).to(device)
            assignment[number] = state.assign(on_grid(vectors), assignment[number])
        sums += all_reduce_sum(state.change).cpu().numpy()
        sizes += all_reduce_sum(state.size_change).cpu().numpy()
        assert sizes.max() < MAX_SIZE, "too few clusters for exact sums"
        objective.append(float((sums * centroids).sum() / num))
        updated = _updated(sums, sizes, centroids)
        moved, centroids = (updated != centroids).any(axis=1), updated
        log.info("k-means %d: cosine %.6f, %d centroids moved", len(objective), objective[-1], moved.sum())
        if saved is not None:
            saved.save(centroids=centroids, moved=moved, objective=objective)
    return Clusters(centroids, objective)


def assign(
    blocks: Blocks, centroids: Float[np.ndarray, "k d"], *, precision: Precision, device: torch.device
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nearest centroid of every vector and the cosine to it (int32, float32), in all processes; called by all."""
    table = Centroids(torch.from_numpy(centroids).to(device), precision)
    index = torch.zeros(blocks.num_rows(), dtype=torch.int32, device=device)
    cosine = torch.zeros(blocks.num_rows(), dtype=torch.float32, device=device)
    for number in own_blocks(blocks):
        rows = rows_of(blocks, number)
        vectors = on_grid(torch.from_numpy(blocks.take(rows)).to(device)).float()
        nearest = table.nearest(vectors)
        index[rows[0] : rows[-1] + 1] = nearest.int()
        products = (vectors.double() * table.vectors[nearest].double()).sum(1)  # exact
        cosine[rows[0] : rows[-1] + 1] = products.clamp(max=1).float()
    return all_reduce_sum(index).cpu().numpy(), all_reduce_sum(cosine).cpu().numpy()


class _State:
    """One iteration: where the centroids are, which of them moved, and how the sums of their vectors change."""

    def __init__(
        self, centroids: NDArray[np.float32], moved: NDArray[np.bool_], precision: Precision, device: torch.device
    ) -> None:
        self.moved = torch.from_numpy(moved).to(device)
        self.all = Centroids(torch.from_numpy(centroids).to(device), precision)
        few = 0 < moved.mean() < MOST_MOVED
        self.few = Centroids(self.all.vectors[self.moved], precision) if few else None
        self.change = torch.zeros(centroids.shape, dtype=torch.float64, device=device)
        self.size_change = torch.zeros(len(centroids), dtype=torch.int64, device=device)

    def assign(self, vectors: Tensor, before: Tensor) -> Tensor:
        """Nearest centroids of a block, given those `before` (none: the first time); takes note of changes."""
        if not len(before):
            now = self.all.nearest(vectors)
            self._count(vectors, now, 1)
            return now.int()
        before = before.long()
        now = self._nearest(vectors, before)
        changed = (now != before).nonzero()[:, 0]
        self._count(vectors[changed], now[changed], 1)
        self._count(vectors[changed], before[changed], -1)
        return now.int()

    def _nearest(self, vectors: Tensor, before: Tensor) -> Tensor:
        if self.few is None:
            return self.all.nearest(vectors)
        again = self.moved[before]
        still = (~again).nonzero()[:, 0]
        if len(still):
            again[still[self.few.rivals(vectors[still], self.all.vectors[before[still]])]] = True
        now = before.clone()
        if again.any():
            now[again] = self.all.nearest(vectors[again])
        return now

    def _count(self, vectors: Tensor, clusters: Tensor, sign: int) -> None:
        self.change.index_add_(0, clusters, vectors.float().double(), alpha=sign)
        self.size_change.index_add_(0, clusters, torch.ones_like(clusters), alpha=sign)


def _updated(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Mean directions of the clusters. In NumPy, whose sums of rows no thread divides."""
    directions = sums.copy()
    empty = np.flatnonzero(sizes == 0)
    largest = np.argsort(-sizes, kind="stable")[: len(empty)]
    largest = largest[sizes[largest] > 1]
    signs = np.where(np.arange(centroids.shape[1]) % 2, SPLIT, -SPLIT)
    directions[empty[: len(largest)]] = centroids[largest] * (1 + signs)
    lengths = np.sqrt((directions**2).sum(axis=1))
    kept = lengths < 1e-6  # no vectors, or such as cancel out: there is no mean direction
    directions[kept], lengths[kept] = centroids[kept], 1
    return on_grid(torch.from_numpy(directions / lengths[:, None])).numpy()
