"""A sample that is spread evenly over what the pool shows, without any seed (the idea of arXiv 2405.15613).

Crowded regions of a web pool get most centroids of one k-means. Clustering the centroids themselves, level upon
level, evens that out, and so does clustering a few members of each cluster in place of all. A number of images is then
divided down the tree: every cluster of the coarsest level gets the same, as far as it has so many, and so on down.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from dinov2.curation.params import BalancedParams, ClusterParams
from dinov2.curation.retrieve.blocks import Blocks, InMemory
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
from dinov2.curation.retrieve.saved import Saved

log = logging.getLogger(__name__)


class Tree(NamedTuple):
    """Clusters of clusters."""

    centroids: Float[np.ndarray, "k d"]
    """Of the finest level."""
    parents: list[Int[np.ndarray, " _"]]
    """The cluster of the next coarser level that each cluster of a level is in; finest first, none for the coarsest."""


def grow_tree(
    blocks: Blocks, clusters: ClusterParams, balance: BalancedParams, device: torch.device, saved: Saved | None = None
) -> Tree:
    """`clusters.num_clusters` clusters of the vectors, then `balance.coarser` clusters of clusters."""

    def level(points: Blocks, num: int) -> NDArray[np.float32]:
        return _level(points, clusters.model_copy(update={"num_clusters": num}), balance, device, saved)

    finest = level(blocks, clusters.num_clusters)
    below, parents = finest, []
    for num in balance.coarser:
        points = InMemory(below)
        above = level(points, num)
        parents.append(assign(points, above, precision=clusters.precision, device=device)[0])
        below = above
    return Tree(finest, parents)


def _level(
    points: Blocks, clusters: ClusterParams, balance: BalancedParams, device: torch.device, saved: Saved | None
) -> NDArray[np.float32]:
    """Centroids of points; after the first k-means, of the few points of each cluster that are nearest its centroid."""

    def centroids_of(chosen: Blocks) -> NDArray[np.float32]:
        computation = saved.next() if saved is not None else None
        return spherical_kmeans(chosen, **clusters.model_dump(), device=device, saved=computation).centroids

    centroids = centroids_of(points)
    for _ in range(balance.num_resamplings):
        index, cosine = assign(points, centroids, precision=clusters.precision, device=device)
        few = np.flatnonzero(first_of_each(index, -cosine, np.full(len(centroids), balance.num_resampled)))
        log.info("%d of %d points stand for the rest", len(few), points.num_rows())
        centroids = centroids_of(points.subset(few))
    return centroids


def balanced_sample(
    tree: Tree, index: Int[np.ndarray, " n"], cosine: Float[np.ndarray, " n"], balance: BalancedParams, seed: int
) -> Bool[np.ndarray, " n"]:
    """Which of n vectors are chosen: `balance.num_images` or all, if there are fewer. `index` is their finest cluster.

    Within a cluster those nearest its centroid, or any by `seed`.
    """
    sizes = [np.bincount(index, minlength=len(tree.centroids))]
    for parent, num in zip(tree.parents, [*map(len, tree.parents[1:]), 0], strict=False):
        sizes.append(np.bincount(parent, weights=sizes[-1], minlength=num).astype(np.int64))
    quota = divide(balance.num_images, sizes[-1])
    for parent, size in zip(reversed(tree.parents), reversed(sizes[:-1]), strict=True):
        finer = np.zeros(len(size), np.int64)
        for cluster in np.unique(parent):
            finer[parent == cluster] = divide(int(quota[cluster]), size[parent == cluster])
        quota = finer
    by_seed = np.random.Generator(np.random.PCG64(seed)).random(len(index)) if balance.pick == "random" else None
    return first_of_each(index, -cosine if by_seed is None else by_seed, quota)


def divide(total: int, sizes: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """`total` things from k piles as evenly as their sizes allow; what does not divide goes to the first with more."""
    total = min(total, int(sizes.sum()))
    level, left = 0, total
    order = np.sort(sizes)
    for place, size in enumerate(order.tolist()):  # raise the level pile by pile, while there is enough for the rest
        step = min(size - level, left // (len(order) - place))
        level, left = level + step, left - step * (len(order) - place)
        if level < size:
            break
    quota = np.minimum(sizes, level)
    quota[np.flatnonzero(sizes > level)[:left]] += 1
    return quota


def first_of_each(
    index: Int[np.ndarray, " n"], key: Float[np.ndarray, " n"], quota: Int[np.ndarray, " k"]
) -> Bool[np.ndarray, " n"]:
    """Whether each is among the `quota[cluster]` first of its cluster by `key`; of equals the earlier."""
    sizes = np.bincount(index, minlength=len(quota))
    num = np.minimum(quota, sizes)
    first = np.cumsum(sizes) - sizes  # of each cluster, in order of clusters
    places = np.arange(num.sum()) + np.repeat(first - (np.cumsum(num) - num), num)
    result = np.zeros(len(index), bool)
    result[np.lexsort((key, index))[places]] = True
    return result

