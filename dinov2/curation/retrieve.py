"""Which pool images the seeds bring in (paper section 3, appendix A.4).

A label with many seeds takes the N nearest pool images of each seed (*sample-based*). One with few would bring in too
little that way, so each of its seeds takes up to M images of the pool's cluster that it falls into, nearest first
(*cluster-based*). An image that several seeds want goes to the most similar one.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray

from dinov2.curation.params import RetrievalParams
from dinov2.search import top_k

SAMPLE, CLUSTER = "sample", "cluster"


class Choices(NamedTuple):
    """The retrieved images, in the order of the pool."""

    pool: Int[np.ndarray, " r"]
    """Row of the pool image; none twice."""
    seed: Int[np.ndarray, " r"]
    """Row of the seed that brings it in."""
    cosine: Float[np.ndarray, " r"]
    by_cluster: Shaped[np.ndarray, " r"]
    """Whether cluster-based; else sample-based."""
    over_limit: Int[np.ndarray, " o"]
    """Rows of pool images that only `max_per_label` kept out."""


def strategies(labels: Sequence[str | None], sample_based_from: int) -> dict[str | None, str]:
    """`sample` or `cluster` for each label, by its number of seeds; seeds without a label form one group."""
    counts = sorted(Counter(labels).items(), key=lambda item: item[0] or "")
    return {label: SAMPLE if count >= sample_based_from else CLUSTER for label, count in counts}


def retrieve(
    params: RetrievalParams,
    *,
    seeds: Float[np.ndarray, "s d"],
    labels: Sequence[str | None],
    seed_clusters: Int[np.ndarray, " s"],
    pool: Float[np.ndarray, "n d"],
    pool_clusters: Int[np.ndarray, " n"],
) -> Choices:
    """Pool images that the seeds bring in, each by its most similar seed; equals go to the earlier row."""
    strategy = strategies(labels, params.sample_based_from)
    by_sample = np.array([strategy[label] == SAMPLE for label in labels])
    parts = [_candidates(seeds, np.flatnonzero(by_sample), pool, np.arange(len(pool)), params.num_neighbors)]
    for cluster in np.unique(seed_clusters[~by_sample]):
        rows = np.flatnonzero(~by_sample & (seed_clusters == cluster))
        members = np.flatnonzero(pool_clusters == cluster)
        parts.append(_candidates(seeds, rows, pool, members, params.num_from_cluster))
    seed, image, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    near = cosine >= params.min_cosine
    seed, image, cosine = seed[near], image[near], cosine[near]
    order = np.lexsort((seed, -cosine, image))
    _, first = np.unique(image[order], return_index=True)
    best = order[first]
    seed, image, cosine = seed[best], image[best], cosine[best]
    number = {label: place for place, label in enumerate(strategy)}
    label_of_seed = np.array([number[label] for label in labels])
    kept = _within_limit(label_of_seed[seed], cosine, params.max_per_label)
    return Choices(image[kept], seed[kept], cosine[kept], ~by_sample[seed[kept]], image[~kept])


def _candidates(
    seeds: NDArray[np.float32], rows: NDArray[np.int64], pool: NDArray[np.float32], members: NDArray[np.int64], num: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(seed row, pool row, cosine) of the `num` nearest pool `members` of the seeds in `rows`."""
    if len(rows) == 0 or len(members) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    num = min(num, len(members))
    cosine, index = top_k(seeds[rows], pool[members], num)
    return np.repeat(rows, num), members[index.ravel()], cosine.ravel()


def _within_limit(labels: NDArray[np.int64], cosine: NDArray[np.float32], limit: int | None) -> NDArray[np.bool_]:
    """Whether each choice is among the `limit` most similar of its label; equals in the order of the pool."""
    kept = np.ones(len(labels), bool)
    if limit is not None:
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            kept[rows[np.argsort(-cosine[rows], kind="stable")[limit:]]] = False
    return kept
