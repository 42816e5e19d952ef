"""Which images are copies: of evaluation images, and of each other (paper section 3, appendix A.3).

Images are nodes and pairs above the threshold are edges. A connected component keeps one image, its *representative*;
a component that holds a copy of an evaluation image keeps none. Every removed image names a *witness*: the evaluation
image it copies, or else its neighbour that is one step nearer to what stays (or to the evaluation image), the most
similar one where there are several. So a chain of witnesses always ends at the cause.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from dinov2.search import Pairs

NONE = -1


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


def group_copies(pairs: Pairs, rank: Int[np.ndarray, " n"], contaminated: Bool[np.ndarray, " n"]) -> Groups:
    """Components of the pairs (first < second), one representative in each, and a witness for each other image.

    `rank` orders the images as representatives (no two alike); `contaminated` marks copies of evaluation images.
    """
    num = len(rank)
    first, second = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
    graph = csr_array((np.ones(len(first), np.int8), (first, second)), shape=(num, num))
    num_components, component = connected_components(graph, directed=False)
    is_lost = np.zeros(num_components, bool)
    is_lost[component[contaminated]] = True
    best = np.full(num_components, num)
    np.minimum.at(best, component, rank)
    keep = (rank == best[component]) & ~is_lost[component]
    witness, cosine = _nearest_to_causes(keep | contaminated, first, second, np.tile(pairs.cosine, 2), rank)
    return Groups(component.astype(np.int64), keep, witness, cosine)


def _nearest_to_causes(
    cause: Bool[np.ndarray, " n"],
    first: Int[np.ndarray, " e"],
    second: Int[np.ndarray, " e"],
    edge_cosine: Float[np.ndarray, " e"],
    rank: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each image that is no cause, its neighbour with one step less to a cause; most similar, then best rank."""
    num = len(cause)
    witness, cosine = np.full(num, NONE), np.zeros(num, np.float32)
    if len(first) == 0:
        return witness, cosine
    roots = np.flatnonzero(cause)
    rows = np.concatenate([first, np.full(len(roots), num)])  # node `num` stands before all causes
    columns = np.concatenate([second, roots])
    graph = csr_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(num + 1, num + 1))
    steps = dijkstra(graph, indices=num, unweighted=True)[:num]
    onward = np.flatnonzero(steps[first] == steps[second] + 1)
    onward = onward[np.lexsort((rank[second[onward]], -edge_cosine[onward], first[onward]))]
    rows, starts = np.unique(first[onward], return_index=True)
    chosen = onward[starts]
    witness[rows], cosine[rows] = second[chosen], edge_cosine[chosen]
    return witness, cosine
