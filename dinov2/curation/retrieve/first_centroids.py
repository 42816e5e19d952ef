"""Where k-means starts: k-means++ on a sample, drawn a few at a time so that most of its work is matrix products.

Each process holds its share of the sample. Cosines are exact (nearest.py says why), so that all processes, however
many, draw the same.
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dinov2.curation.retrieve.blocks import Blocks, is_own
from dinov2.curation.retrieve.nearest import on_grid
from dinov2.distributed import all_reduce_sum

SAMPLE_PER_CLUSTER = 16
GROWTH = 16  # one is drawn at a time up to here, then one for every so many that there are
CHUNK_ROWS = 4096


def first_centroids(
    blocks: Blocks, num_clusters: int, seed: int, device: torch.device
) -> Float[np.ndarray, "k d"]:
    """Vectors far from each other: the next ones are drawn in proportion to 1 - cosine to the nearest one so far."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size = min(blocks.num_rows(), SAMPLE_PER_CLUSTER * num_clusters)
    sample = _Sample(blocks, np.sort(rng.choice(blocks.num_rows(), size, replace=False)), device)
    chosen = np.array([rng.integers(size)])
    centroids = [sample.take(chosen)]
    distance = np.full(size, np.inf)
    while len(chosen) < num_clusters:
        distance = np.minimum(distance, sample.distance(centroids[-1]))
        distance[chosen] = 0
        num = min(num_clusters - len(chosen), max(1, len(chosen) // GROWTH))
        drawn = _draw(distance, num, rng.random())
        if len(drawn) == 0:  # fewer distinct vectors than clusters
            drawn = np.setdiff1d(np.arange(size), chosen)[: num_clusters - len(chosen)]
        chosen = np.concatenate([chosen, drawn])
        centroids.append(sample.take(drawn))
    return torch.cat(centroids).float().cpu().numpy()


def _draw(weights: NDArray[np.float64], num: int, offset: float) -> NDArray[np.int64]:
    """At most `num` rows in proportion to their weights, none twice: at even steps along the sum, from an offset."""
    along = np.cumsum(weights)
    if along[-1] <= 0:
        return np.empty(0, np.int64)
    return np.unique(np.searchsorted(along, (np.arange(num) + offset) * (along[-1] / num), side="right"))


class _Sample:
    """Rows of the blocks, of which each process holds some."""

    def __init__(self, blocks: Blocks, rows: NDArray[np.int64], device: torch.device) -> None:
        self.mine = np.flatnonzero(is_own(rows))
        vectors = blocks.take(rows[self.mine])
        self.vectors = on_grid(torch.from_numpy(vectors).to(device))
        self.size = len(rows)

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """These vectors, in all processes."""
        taken = self.vectors.new_zeros(len(places), self.vectors.shape[1], dtype=torch.float64)
        own = np.flatnonzero(np.isin(places, self.mine))
        taken[own] = self.vectors[np.searchsorted(self.mine, places[own])].double()
        return all_reduce_sum(taken)

    def distance(self, centroids: Tensor) -> NDArray[np.float64]:
        """1 - cosine of each to the nearest of `centroids`, in all processes."""
        result = torch.zeros(self.size, dtype=torch.float64, device=self.vectors.device)
        pieces = [(rows.double() @ centroids.T).amax(1) for rows in self.vectors.split(CHUNK_ROWS)]
        if pieces:
            result[self.mine] = (1 - torch.cat(pieces)).clamp(min=0)
        return all_reduce_sum(result).cpu().numpy()
