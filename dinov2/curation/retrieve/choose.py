"""The two ways to choose from the pool, from descriptors to what becomes of each image: by seeds, or evenly."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from dinov2.curation.params import BalancedParams, ClusterParams, SeededParams
from dinov2.curation.retrieve.balance import balanced_sample, grow_tree
from dinov2.curation.retrieve.blocks import Blocks
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
from dinov2.curation.retrieve.saved import Saved
from dinov2.curation.retrieve.seeds import CLUSTER, SAMPLE, Seeds, retrieve, strategies

log = logging.getLogger(__name__)

ORIGINS = (SAMPLE, CLUSTER, "balanced")
FATES = ("taken", "not_retrieved", "source_full", "not_sampled", "bad_descriptor")
TAKEN = 0


class Chosen(NamedTuple):
    """What becomes of the n images of the pool, of which r are taken; in its order."""

    fate: Int[np.ndarray, " n"]
    """Number in FATES of each image, int8."""
    origin: Int[np.ndarray, " r"]
    """Number in ORIGINS of each image that is taken, int8."""
    seed: Int[np.ndarray, " r"]
    """Row of the seed that took it; -1: none did."""
    cosine: Float[np.ndarray, " r"]
    """To that seed; where there is none, to the centroid of its cluster."""
    cluster: Int[np.ndarray, " r"]
    centroids: Float[np.ndarray, "k d"]
    seed_clusters: Int[np.ndarray, " s"] | None
    """The pool's cluster that each seed falls into; None without seeds."""
    metrics: dict[str, float]


def by_seeds(
    clusters: ClusterParams,
    choose: SeededParams,
    pool: Blocks,
    sources: Sequence[str | None],
    seed_blocks: Blocks,
    *,
    device: torch.device,
    saved: Saved,
) -> Chosen:
    """What the seeds, each of a source, retrieve. To be called by all processes, which all get the result."""
    centroids = spherical_kmeans(pool, **clusters.model_dump(), device=device, saved=saved.next()).centroids
    index, near = assign(pool, centroids, precision=clusters.precision, device=device)
    objective = float(near.mean(dtype=np.float64))
    del near
    seed_clusters, _ = assign(seed_blocks, centroids, precision=clusters.precision, device=device)
    given = Seeds(seed_blocks, sources, seed_clusters)
    choices = retrieve(choose, seeds=given, pool=pool, pool_clusters=index, device=device, saved=saved.next())
    fate = np.full(len(index), FATES.index("not_retrieved"), np.int8)
    fate[choices.over_quota] = FATES.index("source_full")
    fate[choices.pool] = TAKEN
    strategy = strategies(sources, choose.sample_based_from)
    metrics = {
        "num_by_sample": int((~choices.by_cluster).sum()),
        "num_by_cluster": int(choices.by_cluster.sum()),
        "num_sources_by_cluster": sum(value == CLUSTER for value in strategy.values()),
        "num_sources_by_sample": sum(value == SAMPLE for value in strategy.values()),
        "mean_cosine": float(choices.cosine.mean(dtype=np.float64)) if len(choices.cosine) else 0.0,
        "kmeans_objective": objective,
    }
    origin = np.where(choices.by_cluster, ORIGINS.index(CLUSTER), ORIGINS.index(SAMPLE)).astype(np.int8)
    cluster = index[choices.pool]
    return Chosen(fate, origin, choices.seed, choices.cosine, cluster, centroids, seed_clusters, metrics)


def balanced(
    clusters: ClusterParams, choose: BalancedParams, pool: Blocks, *, device: torch.device, saved: Saved
) -> Chosen:
    """An even sample of the pool. To be called by all processes, which all get the result."""
    tree = grow_tree(pool, clusters, choose, device, saved)
    index, cosine = assign(pool, tree.centroids, precision=clusters.precision, device=device)
    chosen = np.flatnonzero(balanced_sample(tree, index, cosine, choose, clusters.seed))
    if len(chosen) < choose.num_images:
        log.warning("num_images is %d, but the pool has %d images; all are taken", choose.num_images, len(chosen))
    fate = np.full(len(index), FATES.index("not_sampled"), np.int8)
    fate[chosen] = TAKEN
    sizes = np.bincount(index, minlength=len(tree.centroids))
    metrics = {
        "mean_cosine": float(cosine[chosen].mean(dtype=np.float64)),
        "kmeans_objective": float(cosine.mean(dtype=np.float64)),
        "num_clusters_sampled": int(np.count_nonzero(np.bincount(index[chosen]))),
        "largest_cluster": int(sizes.max()),
    }
    origin = np.full(len(chosen), ORIGINS.index("balanced"), np.int8)
    none = np.full(len(chosen), -1, np.int8)
    return Chosen(fate, origin, none, cosine[chosen], index[chosen], tree.centroids, None, metrics)
