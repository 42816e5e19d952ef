"""Which images are copies: of evaluation images, and of each other (paper section 3, appendix A.3).

Images are nodes and pairs above the threshold are edges. A connected component keeps one image, its *representative*;
a component that holds a copy of an evaluation image keeps none. Every removed image names a *witness*: the evaluation
image it copies, or else its neighbour that is one step nearer to what stays (or to the evaluation image), the most
similar one where there are several. So a chain of witnesses always ends at the cause.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from dinov2.curation.dedup.join import Pairs

NONE = -1
FAR = np.iinfo(np.int64).max // 2


class Contacts(NamedTuple):
    """For each image the evaluation image that it is most similar to, if above the threshold."""

    witness: Int[np.ndarray, " n"]
    """Row of the evaluation image; -1 where there is none."""
    cosine: Float[np.ndarray, " n"]


class Groups(NamedTuple):
    """Connected components of near-copies and what becomes of each image."""

    component: Int[np.ndarray, " n"]
    """Number of the component."""
    keep: Bool[np.ndarray, " n"]
    witness: Int[np.ndarray, " n"]
    """Row of the neighbour on the way to the cause; -1 for kept images and for copies of evaluation images."""
    cosine: Float[np.ndarray, " n"]
    """With that neighbour; 0 where there is none."""


def evaluation_contacts(pairs: Pairs, num_images: int) -> Contacts:
    """The best of the pairs (image, evaluation image) of each image; equals go to the first evaluation image."""
    witness, cosine = np.full(num_images, NONE), np.zeros(num_images, np.float32)
    order = np.lexsort((pairs.second, -pairs.cosine, pairs.first))
    rows, starts = np.unique(pairs.first[order], return_index=True)
    witness[rows], cosine[rows] = pairs.second[order][starts], pairs.cosine[order][starts]
    return Contacts(witness, cosine)


def preference(
    is_seed: Bool[np.ndarray, " n"], area_px: Int[np.ndarray, " n"], ids: list[str]
) -> Int[np.ndarray, " n"]:
    """Rank of each image as a representative, best 0: a seed before a pool image, larger area, smaller id."""
    position = np.empty(len(ids), np.int64)
    position[np.argsort(np.array(ids, dtype=str), kind="stable")] = np.arange(len(ids))
    rank = np.empty(len(ids), np.int64)
    rank[np.lexsort((position, -area_px, ~is_seed))] = np.arange(len(ids))
    return rank


def group_copies(
    shards: Iterable[Pairs], rank: Int[np.ndarray, " n"], contaminated: Bool[np.ndarray, " n"]
) -> Groups:
    """Components of the pairs, one representative in each, and a witness for each other image.

    `shards` hold the pairs, in any division, and are gone through several times: files that are read one by one keep
    memory small. `rank` orders the images as representatives (no two alike);
    `contaminated` marks copies of evaluation images.
    """
    num = len(rank)
    component = np.arange(num)
    for pairs in shards:
        first, second = component[pairs.first], component[pairs.second]
        graph = csr_array((np.ones(len(first), np.int8), (first, second)), shape=(num, num))
        component = connected_components(graph, directed=False)[1][component]
    component = np.unique(component, return_inverse=True)[1]
    is_lost = np.zeros(num, bool)
    is_lost[component[contaminated]] = True
    best = np.full(num, num)
    np.minimum.at(best, component, rank)
    keep = (rank == best[component]) & ~is_lost[component]
    steps = _steps_to_causes(shards, keep | contaminated)
    return Groups(component, keep, *_witnesses(shards, steps, rank))


def _steps_to_causes(shards: Iterable[Pairs], cause: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number of pairs between each image and a cause; FAR where there is no way."""
    steps = np.where(cause, 0, FAR)
    moved = True
    while moved:
        moved = False
        for pairs in shards:
            first, second = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
            while len(nearer := np.flatnonzero(steps[first] > steps[second] + 1)):
                np.minimum.at(steps, first[nearer], steps[second[nearer]] + 1)
                moved = True
    return steps


def _witnesses(
    shards: Iterable[Pairs], steps: Int[np.ndarray, " n"], rank: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each image that is no cause, its neighbour with one step less to a cause; most similar, then best rank."""
    witness, cosine = np.full(len(steps), NONE), np.zeros(len(steps), np.float32)
    for pairs in shards:
        first, second = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
        onward = np.flatnonzero(steps[first] == steps[second] + 1)
        first, second, edge = first[onward], second[onward], np.tile(pairs.cosine, 2)[onward]
        order = np.lexsort((rank[second], -edge, first))
        rows, starts = np.unique(first[order], return_index=True)
        best, edge = second[order][starts], edge[order][starts]
        better = (edge > cosine[rows]) | ((edge == cosine[rows]) & (rank[best] < rank[witness[rows]]))
        witness[rows[better]], cosine[rows[better]] = best[better], edge[better]
    return witness, cosine
