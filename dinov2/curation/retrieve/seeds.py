"""Which pool images the seeds bring in (paper section 3, appendix A.4).

A source (the seeds of one label) with many seeds takes the N nearest pool images of each seed (*sample-based*). One
with few would bring in too little that way, so each of its seeds takes up to M images of the pool's cluster that it
falls into, nearest first (*cluster-based*). An image that several seeds want goes to the most similar one.

The pool is searched a block at a time; memory is that of a block and of what the seeds may take.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from dinov2.curation.params import SeededParams
from dinov2.curation.retrieve.balance import first_of_each
from dinov2.curation.retrieve.blocks import Blocks, own_blocks, rows_of, unit
from dinov2.distributed import world_size
from dinov2.search import top_k

SAMPLE, CLUSTER = "sample", "cluster"


class Seeds(NamedTuple):
    """What retrieves."""

    vectors: Float[np.ndarray, "s d"]
    sources: Sequence[str | None]
    clusters: Int[np.ndarray, " s"]
    """The pool's cluster that each falls into."""


class Choices(NamedTuple):
    """The retrieved images, in the order of the pool."""

    pool: Int[np.ndarray, " r"]
    """Row of the pool image; none twice."""
    seed: Int[np.ndarray, " r"]
    """Row of the seed that brings it in."""
    cosine: Float[np.ndarray, " r"]
    by_cluster: Bool[np.ndarray, " r"]
    """Whether cluster-based; else sample-based."""
    over_quota: Int[np.ndarray, " o"]
    """Rows of pool images that only `max_per_source` kept out."""


class Candidates(NamedTuple):
    """Pool images that a seed would take."""

    seed: Int[np.ndarray, " c"]
    image: Int[np.ndarray, " c"]
    cosine: Float[np.ndarray, " c"]


def strategies(sources: Sequence[str | None], sample_based_from: int) -> dict[str | None, str]:
    """`sample` or `cluster` for each source, by its number of seeds; seeds without a label form one."""
    counts = sorted(Counter(sources).items(), key=lambda item: item[0] or "")
    return {source: SAMPLE if count >= sample_based_from else CLUSTER for source, count in counts}


def retrieve(
    params: SeededParams,
    *,
    seeds: Seeds,
    pool: Blocks,
    pool_clusters: Int[np.ndarray, " n"],
    device: torch.device,
) -> Choices:
    """Pool images that the seeds bring in, each by its most similar seed; equals go to the earlier row.

    To be called by all processes, which share the blocks and all get the result.
    """
    strategy = strategies(seeds.sources, params.sample_based_from)
    by_sample = np.array([strategy[source] == SAMPLE for source in seeds.sources])
    seed, image, cosine = _Search(params, seeds, by_sample, device)(pool, pool_clusters)
    order = np.lexsort((seed, -cosine, image))
    _, first = np.unique(image[order], return_index=True)
    best = order[first]
    seed, image, cosine = seed[best], image[best], cosine[best]
    number = {source: place for place, source in enumerate(strategy)}
    source_of_seed = np.array([number[source] for source in seeds.sources])
    quota = np.full(len(number), len(image) if params.max_per_source is None else params.max_per_source)
    kept = first_of_each(source_of_seed[seed], -cosine, quota)
    return Choices(image[kept], seed[kept], cosine[kept], ~by_sample[seed[kept]], image[~kept])


def _nearest(parts: Sequence[Candidates], quota: NDArray[np.int64]) -> Candidates:
    """The `quota` nearest of each seed among all parts; of equals the earlier images."""
    none = Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    seed, image, cosine = (np.concatenate(column) for column in zip(none, *parts, strict=True))
    order = np.argsort(image, kind="stable")
    kept = order[first_of_each(seed[order], -cosine[order], quota)]
    return Candidates(seed[kept], image[kept], cosine[kept])


class _Search:
    """What each seed takes: the nearest N, or M of its cluster, above the least cosine."""

    def __init__(self, params: SeededParams, seeds: Seeds, by_sample: NDArray[np.bool_], device: torch.device) -> None:
        self.seeds, self.by_sample, self.device = seeds, by_sample, device
        self.quota = np.where(by_sample, params.num_neighbors, params.num_from_cluster)
        self.min_cosine = params.min_cosine

    def __call__(self, pool: Blocks, pool_clusters: NDArray[np.int32]) -> Candidates:
        """Of the whole pool; processes share its blocks."""
        found = _nearest([], self.quota)
        for number in own_blocks(pool):
            rows = rows_of(pool, number)
            near = self._block(unit(pool.take(rows)), pool_clusters[rows])
            found = _nearest([found, *(part._replace(image=rows[part.image]) for part in near)], self.quota)
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, found)
            found = _nearest(everyone, self.quota)
        return found

    def _block(self, vectors: NDArray[np.float32], clusters: NDArray[np.int32]) -> Iterator[Candidates]:
        if self.by_sample.any():
            yield self._pairs(np.flatnonzero(self.by_sample), vectors, np.arange(len(vectors)))
        for cluster in np.intersect1d(self.seeds.clusters[~self.by_sample], clusters):
            few = np.flatnonzero(~self.by_sample & (self.seeds.clusters == cluster))
            yield self._pairs(few, vectors, np.flatnonzero(clusters == cluster))

    def _pairs(self, rows: NDArray[np.int64], block: NDArray[np.float32], members: NDArray[np.int64]) -> Candidates:
        """The `members` of a block nearest to the seeds in `rows`, who all have one quota."""
        num = min(int(self.quota[rows[0]]), len(members))
        queries, keys = self.seeds.vectors[rows], block[members]
        if self.device.type == "cuda":
            found = top_k(torch.from_numpy(queries).to(self.device), torch.from_numpy(keys).to(self.device), num)
            cosine, index = (values.cpu().numpy() for values in found)
        else:
            cosine, index = top_k(queries, keys, num)
        near = cosine.ravel() >= self.min_cosine
        return Candidates(np.repeat(rows, num)[near], members[index.ravel()[near]], cosine.ravel()[near])
