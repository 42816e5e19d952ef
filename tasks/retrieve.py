"""Choose the pool images that are like the curated seeds, and pack both into new shards.

In:    --dedup unique pool and seeds; --embed their semantic descriptors
Out:   manifest.parquet   CURATED: the seeds (origin seed), then the retrieved images (origin sample or cluster) in the
                          order of the pool, each with the seed that chose it, the cosine and its cluster
       removed.parquet    the rest of the pool: not_retrieved, or label_full where only max_per_label kept it out
       inspect.html       seeds beside their nearest pool images, to set N, M and min_cosine by
       blobs.json         the shards
Run:   python -m tasks.retrieve --dedup data/dedup --embed data/embed --out data/retrieve
Cost:  k-means is n x num_clusters x d multiplications an iteration; then one copy of the chosen images
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dinov2.curation.params import ClusterParams, InspectParams, RetrievalParams
from dinov2.params import InputError, Params
from dinov2.records import CURATED, MANIFEST, REMOVED, Summary, count_reasons, read_table, write_table
from dinov2.store import Store
from tasks.stage import main

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from dinov2.curation.descriptors import SetName
    from dinov2.curation.retrieve import Choices

VERSION = 1
log = logging.getLogger(__name__)

Row = dict[str, Any]


class RetrieveParams(Params):
    """From unique images to the curated set."""

    clusters: ClusterParams
    choose: RetrievalParams
    include_seeds: bool
    """Whether the seeds themselves are part of the curated set."""
    shard_mb: Annotated[int, Field(gt=0)]
    """Size at which a shard is finished."""
    inspect: InspectParams


def run(params: RetrieveParams, *, dedup: Path, embed: Path, out: Path, work: Path, store: Store) -> Summary:
    """Cluster the pool, let the seeds choose, write shards, manifest and inspection page."""
    # imported in the job, not in the submitting process
    from dinov2.curation.cluster import assign, spherical_kmeans
    from dinov2.curation.descriptors import EMBEDDED
    from dinov2.curation.inspect import inspection_page
    from dinov2.curation.retrieve import CLUSTER, SAMPLE, retrieve, strategies

    pool, seeds = read_table(dedup / "manifest.parquet", MANIFEST), read_table(dedup / "seeds.parquet", EMBEDDED)
    if not pool or not seeds:
        raise InputError(f"{dedup} holds {len(pool)} pool images and {len(seeds)} seeds; retrieval needs some of both")
    store.check((row["shard"] for row in seeds + pool), needed_by=dedup / "manifest.parquet")
    pool_vectors, seed_vectors = _vectors(embed, "pool", pool, store), _vectors(embed, "seeds", seeds, store)
    clusters = spherical_kmeans(pool_vectors, **params.clusters.model_dump())
    seed_clusters, _ = assign(seed_vectors, clusters.centroids)
    labels = [row["label"] for row in seeds]
    choices = retrieve(
        params.choose, seeds=seed_vectors, labels=labels, seed_clusters=seed_clusters,
        pool=pool_vectors, pool_clusters=clusters.assignment,
    )
    strategy = strategies(labels, params.choose.sample_based_from)
    rows = _curated_seeds(seeds, seed_clusters.tolist()) if params.include_seeds else []
    rows += _curated_pool(pool, seeds, choices, clusters.assignment.tolist())
    if not rows:
        raise InputError("no pool image is near any seed; lower retrieve.choose.min_cosine")
    _pack(rows, params.shard_mb, out, work, store)
    removed = _removed(pool, choices)
    write_table(out / "removed.parquet", REMOVED, removed)
    outputs = {"embed": embed, "dedup": dedup, "retrieve": out}
    page = inspection_page(params.inspect, outputs, store, choose=params.choose.model_dump())
    (out / "inspect.html").write_text(page)
    return Summary(
        num_in=len(pool), num_kept=len(choices.pool), dropped=count_reasons(removed),
        metrics={
            "num_curated": len(rows),
            "num_seeds": len(seeds),
            "num_by_sample": int((~choices.by_cluster).sum()),
            "num_by_cluster": int(choices.by_cluster.sum()),
            "num_labels_by_cluster": sum(value == CLUSTER for value in strategy.values()),
            "num_labels_by_sample": sum(value == SAMPLE for value in strategy.values()),
            "mean_cosine": float(choices.cosine.mean()) if len(choices.cosine) else 0.0,
            "kmeans_objective": clusters.objective[-1],
        },
    )


def _vectors(embed: Path, name: "SetName", rows: Sequence[Row], store: Store) -> "Float[np.ndarray, 'n d']":
    """Semantic descriptors of `rows`, which are some of the set's samples."""
    from dinov2.curation.descriptors import read_descriptors, read_embedded

    places = {row["id"]: place for place, row in enumerate(read_embedded(embed, name))}
    absent = [row["id"] for row in rows if row["id"] not in places]
    if absent:
        raise InputError(
            f"{embed} has no descriptors of {len(absent)} images of {name} (the first: {absent[0]}); "
            "run embed, then dedup, again"
        )
    return read_descriptors(embed, name, "semantic", store)[[places[row["id"]] for row in rows]]


def _curated_seeds(seeds: Sequence[Row], clusters: Sequence[int]) -> list[Row]:
    return [
        {**row, "origin": "seed", "seed_id": row["id"], "cosine": 1.0, "cluster": cluster}
        for row, cluster in zip(seeds, clusters, strict=True)
    ]


def _curated_pool(pool: Sequence[Row], seeds: Sequence[Row], choices: "Choices", clusters: Sequence[int]) -> list[Row]:
    from dinov2.curation.retrieve import CLUSTER, SAMPLE

    chosen = zip(
        choices.pool.tolist(), choices.seed.tolist(), choices.cosine.tolist(), choices.by_cluster.tolist(), strict=True
    )
    return [
        {
            **pool[image],
            "origin": CLUSTER if by_cluster else SAMPLE,
            "seed_id": seeds[seed]["id"],
            "cosine": cosine,
            "cluster": clusters[image],
        }
        for image, seed, cosine, by_cluster in chosen
    ]


def _pack(rows: Sequence[Row], shard_mb: int, out: Path, work: Path, store: Store) -> None:
    """Copy the images into new shards, in the order of `rows`; write manifest.parquet and blobs.json."""
    from dinov2.shards import ShardReader, ShardWriter

    reader = ShardReader(store)
    with ShardWriter(store, work / "shards", shard_mb=shard_mb) as writer:
        for row in rows:
            writer.add(reader.read(row), {name: row[name] for name in CURATED.names})
    reader.close()
    write_table(out / "manifest.parquet", CURATED, writer.rows)
    store.pin(out, {row["shard"] for row in writer.rows})


def _removed(pool: Sequence[Row], choices: "Choices") -> list[Row]:
    """A row of REMOVED for every pool image that was not chosen."""
    chosen, over_limit = set(choices.pool.tolist()), set(choices.over_limit.tolist())
    return [
        {"id": row["id"], "url": row["url"], "reason": "label_full" if place in over_limit else "not_retrieved"}
        for place, row in enumerate(pool)
        if place not in chosen
    ]


if __name__ == "__main__":
    sys.exit(main(run))
