"""The two ways to choose from the pool, from descriptors to rows of the curated set: by seeds, or evenly."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from dinov2.curation.params import BalancedParams, ClusterParams, SeededParams
from dinov2.curation.retrieve.balance import balanced_sample, grow_tree
from dinov2.curation.retrieve.blocks import Blocks, unit
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
from dinov2.curation.retrieve.seeds import CLUSTER, SAMPLE, Seeds, retrieve, strategies

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """What becomes of the pool."""

    taken: dict[int, dict[str, Any]]
    """Row of each chosen image, in order -> the columns that CURATED adds to it."""
    left: dict[int, str]
    """Row of each other image -> why."""
    centroids: Float[np.ndarray, "k d"]
    clusters: Int[np.ndarray, " n"]
    """Of the pool."""
    seed_clusters: list[int]
    metrics: dict[str, float]


def by_seeds(
    clusters: ClusterParams,
    choose: SeededParams,
    pool: Blocks,
    seeds: Sequence[Mapping[str, Any]],
    seed_blocks: Blocks,
    *,
    device: torch.device,
) -> Chosen:
    """What the seeds retrieve. To be called by all processes, which all get the result."""
    centroids = spherical_kmeans(pool, **clusters.model_dump(), device=device).centroids
    index, near = assign(pool, centroids, precision=clusters.precision, device=device)
    seed_clusters, _ = assign(seed_blocks, centroids, precision=clusters.precision, device=device)
    sources = [row["label"] for row in seeds]
    given = Seeds(unit(seed_blocks.take(np.arange(len(seeds)))), sources, seed_clusters)
    choices = retrieve(choose, seeds=given, pool=pool, pool_clusters=index, device=device)
    columns = (choices.pool, choices.seed, choices.cosine, choices.by_cluster, index[choices.pool])
    taken = {
        image: {
            "origin": CLUSTER if by_cluster else SAMPLE, "seed_id": seeds[seed]["id"], "source": sources[seed],
            "cosine": cosine, "cluster": cluster,
        }
        for image, seed, cosine, by_cluster, cluster in zip(*(column.tolist() for column in columns), strict=True)
    }  # fmt: skip
    strategy = strategies(sources, choose.sample_based_from)
    metrics = {
        "num_by_sample": int((~choices.by_cluster).sum()),
        "num_by_cluster": int(choices.by_cluster.sum()),
        "num_sources_by_cluster": sum(value == CLUSTER for value in strategy.values()),
        "num_sources_by_sample": sum(value == SAMPLE for value in strategy.values()),
        "mean_cosine": float(choices.cosine.mean(dtype=np.float64)) if len(choices.cosine) else 0.0,
        "kmeans_objective": float(near.mean(dtype=np.float64)),
    }
    left = dict.fromkeys((row for row in range(len(index)) if row not in taken), "not_retrieved")
    left |= dict.fromkeys(choices.over_quota.tolist(), "source_full")
    return Chosen(taken, left, centroids, index, seed_clusters.tolist(), metrics)


def balanced(clusters: ClusterParams, choose: BalancedParams, pool: Blocks, device: torch.device) -> Chosen:
    """An even sample of the pool. To be called by all processes, which all get the result."""
    tree = grow_tree(pool, clusters, choose, device)
    index, cosine = assign(pool, tree.centroids, precision=clusters.precision, device=device)
    chosen = np.flatnonzero(balanced_sample(tree, index, cosine, choose, clusters.seed))
    if len(chosen) < choose.num_images:
        log.warning("num_images is %d, but the pool has %d images; all are taken", choose.num_images, len(chosen))
    taken = {
        row: {"origin": "balanced", "seed_id": None, "source": None, "cosine": cosine, "cluster": cluster}
        for row, cosine, cluster in zip(chosen.tolist(), cosine[chosen].tolist(), index[chosen].tolist(), strict=True)
    }
    left = dict.fromkeys((row for row in range(len(index)) if row not in taken), "not_sampled")
    sizes = np.bincount(index, minlength=len(tree.centroids))
    metrics = {
        "mean_cosine": float(cosine[chosen].mean(dtype=np.float64)),
        "kmeans_objective": float(cosine.mean(dtype=np.float64)),
        "num_clusters_sampled": int(np.count_nonzero(np.bincount(index[chosen]))),
        "largest_cluster": int(sizes.max()),
    }
    return Chosen(taken, left, tree.centroids, index, [], metrics)
