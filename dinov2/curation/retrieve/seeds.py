"""Which pool images the seeds bring in (paper section 3, appendix A.4).

A source (the seeds of one label) with many seeds takes the N nearest pool images of each seed (*sample-based*). One
with few would bring in too little that way, so each of its seeds takes up to M images of the pool's cluster that it
falls into, nearest first (*cluster-based*). An image that several seeds want goes to the most similar one.

The pool is searched a block at a time, for some of the seeds at a time; memory is that of a block, of those seeds and
what they may take in each process, and of the retrieved images.
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
from dinov2.curation.retrieve.saved import Computation
from dinov2.distributed import world_size
from dinov2.search import top_k

SAMPLE, CLUSTER = "sample", "cluster"
PIECE = 2**22  # images that the seeds that are searched for at a time may take
FEW = 2**18  # candidates that are not worth a sort


class Seeds(NamedTuple):
    """What retrieves."""

    vectors: Blocks
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


class Piece(NamedTuple):
    """Seeds that are searched for at a time."""

    seeds: Int[np.ndarray, " s"]
    quota: int
    by_cluster: bool


NONE = Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


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
    saved: Computation | None = None,
) -> Choices:
    """Pool images that the seeds bring in, each by its most similar seed; equals go to the earlier row.

    To be called by all processes, which share the blocks and all get the result. It goes on from what is `saved`: what
    some of the seeds bring in.
    """
    strategy = strategies(seeds.sources, params.sample_based_from)
    by_sample = np.array([strategy[source] == SAMPLE for source in seeds.sources])
    search = _Search(params, seeds, pool, pool_clusters, device)
    seed, image, cosine = _found(search, search.pieces(by_sample), saved)
    number = {source: place for place, source in enumerate(strategy)}
    source_of_seed = np.array([number[source] for source in seeds.sources])
    quota = np.full(len(number), len(image) if params.max_per_source is None else params.max_per_source)
    kept = first_of_each(source_of_seed[seed], -cosine, quota)
    return Choices(image[kept], seed[kept], cosine[kept], ~by_sample[seed[kept]], image[~kept])


def _found(search: "_Search", pieces: list[Piece], saved: Computation | None) -> Candidates:
    """What all pieces find, each image once."""
    best, num_done, before = NONE, 0, saved.load() if saved is not None else None
    if before is not None and before["num_pieces"] == len(pieces):
        best, num_done = Candidates(before["seed"], before["image"], before["cosine"]), int(before["num_done"])
    for piece in pieces[num_done:]:
        best, num_done = _best_of_images(best, search.piece(piece)), num_done + 1
        if saved is not None:
            saved.save(**best._asdict(), num_done=num_done, num_pieces=len(pieces))
    return best


def _best_of_images(*parts: Candidates) -> Candidates:
    """Each image with its most similar seed, of equals the earlier; in order of images."""
    seed, image, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((seed, -cosine, image))
    _, first = np.unique(image[order], return_index=True)
    best = order[first]
    return Candidates(seed[best], image[best], cosine[best])


def _nearest(parts: Sequence[Candidates], num_seeds: int, quota: int) -> Candidates:
    """The `quota` nearest of each seed among all parts; of equals the earlier images."""
    seed, image, cosine = (np.concatenate(column) for column in zip(NONE, *parts, strict=True))
    order = np.argsort(image, kind="stable")
    kept = order[first_of_each(seed[order], -cosine[order], np.full(num_seeds, quota))]
    return Candidates(seed[kept], image[kept], cosine[kept])


def _among_all(found: Candidates, num_seeds: int, quota: int, device: torch.device) -> Candidates:
    """The nearest of each seed among what all processes found; each merges those of its share of the seeds."""
    owner = found.seed * world_size() // num_seeds
    order = np.argsort(owner, kind="stable")
    sizes = torch.from_numpy(np.bincount(owner, minlength=world_size())).to(device)
    others = torch.empty_like(sizes)
    dist.all_to_all_single(others, sizes)
    received: list[NDArray[Any]] = []
    for column in found:
        sent = torch.from_numpy(column[order]).to(device)
        got = sent.new_empty(int(others.sum()))
        dist.all_to_all_single(got, sent, others.tolist(), sizes.tolist())
        received.append(got.cpu().numpy())
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, _nearest([Candidates(*received)], num_seeds, quota))
    return Candidates(*(np.concatenate(column) for column in zip(*everyone, strict=True)))


class _Nearest:
    """The `quota` nearest images of each of some seeds, as candidates come in rising order of images."""

    def __init__(self, num_seeds: int, quota: int) -> None:
        self._num_seeds, self._quota = num_seeds, quota
        self._found, self._more, self._num_more = NONE, [NONE], 0
        self._floor = np.full(num_seeds, -np.inf, np.float32)  # what an image must exceed to be among the nearest

    def add(self, near: Candidates) -> None:
        better = near.cosine > self._floor[near.seed]
        self._more.append(Candidates(*(column[better] for column in near)))
        self._num_more += len(self._more[-1].seed)
        if self._num_more > max(len(self._found.seed), FEW):
            self.found()

    def found(self) -> Candidates:
        """Those of all that came."""
        self._found = _nearest([self._found, *self._more], self._num_seeds, self._quota)
        self._more, self._num_more = [], 0
        least = np.full(self._num_seeds, np.inf, np.float32)
        np.minimum.at(least, self._found.seed, self._found.cosine)
        is_full = np.bincount(self._found.seed, minlength=self._num_seeds) >= self._quota
        self._floor = np.where(is_full, least, -np.inf).astype(np.float32)
        return self._found


class _Search:
    """What each seed takes: the nearest N, or M of its cluster, above the least cosine."""

    def __init__(
        self, params: SeededParams, seeds: Seeds, pool: Blocks, pool_clusters: NDArray[np.int32], device: torch.device
    ) -> None:
        self.params, self.seeds, self.pool, self.pool_clusters, self.device = params, seeds, pool, pool_clusters, device

    def pieces(self, by_sample: NDArray[np.bool_]) -> list[Piece]:
        """All seeds, some at a time: those by cluster in order of clusters, so that few are looked at."""
        others = np.flatnonzero(~by_sample)
        others = others[np.argsort(self.seeds.clusters[others], kind="stable")]
        kinds = ((np.flatnonzero(by_sample), self.params.num_neighbors, False),
                 (others, self.params.num_from_cluster, True))  # fmt: skip
        return [
            Piece(rows[start : start + max(1, PIECE // quota)], quota, by_cluster)
            for rows, quota, by_cluster in kinds
            for start in range(0, len(rows), max(1, PIECE // quota))
        ]

    def piece(self, piece: Piece) -> Candidates:
        """What these seeds take of the whole pool; processes share its blocks."""
        seeds, quota, by_cluster = piece
        vectors = self._on_device(unit(self.seeds.vectors.take(seeds)))
        clusters = self.seeds.clusters[seeds]
        nearest = _Nearest(len(seeds), quota)
        for number in own_blocks(self.pool):
            rows = rows_of(self.pool, number)
            if by_cluster:
                rows = rows[np.isin(self.pool_clusters[rows], clusters)]
            if not len(rows):
                continue
            block = self._on_device(unit(self.pool.take(rows)))
            for few, members in self._groups(clusters, rows) if by_cluster else [(range(len(seeds)), slice(None))]:
                seed, place, cosine = self._pairs(vectors[few.start : few.stop], block[members], quota)
                nearest.add(Candidates(seed + few.start, rows[members][place], cosine))
        found = nearest.found()
        if world_size() > 1:
            found = _among_all(found, len(seeds), quota, self.device)
        return found._replace(seed=seeds[found.seed])

    def _groups(
        self, clusters: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> Iterator[tuple[range, NDArray[np.int64]]]:
        """For each cluster of the rows: which of the seeds, ordered by `clusters`, are in it, and which rows."""
        home = self.pool_clusters[rows]
        for cluster in np.unique(home).tolist():
            first, last = np.searchsorted(clusters, [cluster, cluster + 1]).tolist()
            yield range(first, last), np.flatnonzero(home == cluster)

    def _on_device(self, vectors: NDArray[np.float32]) -> Any:
        """An array on the CPU, a tensor on a GPU."""
        return torch.from_numpy(vectors).to(self.device) if self.device.type == "cuda" else vectors

    def _pairs(self, queries: Any, keys: Any, quota: int) -> Candidates:
        """The keys nearest to each query, at most `quota`, by their places."""
        num = min(quota, len(keys))
        cosine, index = (v if isinstance(v, np.ndarray) else v.cpu().numpy() for v in top_k(queries, keys, num))
        near = cosine.ravel() >= self.params.min_cosine
        return Candidates(np.repeat(np.arange(len(queries)), num)[near], index.ravel()[near], cosine.ravel()[near])
