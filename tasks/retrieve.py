"""Choose the pool images that are like the curated seeds, or an even sample of the pool; pack them into new shards.

In:    --dedup unique pool and seeds; --embed their semantic descriptors; for the page --evaluation images, and what
       --crawl, --download and --filter removed
Out:   manifest.parquet   CURATED: the seeds (origin seed), then the chosen images in the order of the pool (origin
                          sample, cluster or balanced) with the seed that chose it and its source, cosine and cluster
       removed.parquet    the rest of the pool: not_retrieved or not_sampled; source_full where only max_per_source kept
                          it out; bad_descriptor where its descriptor is no number or not of unit length
       mixture.json       share of each source in what is trained on; empty: as many as it has images
       centroids.npy      the pool's clusters
       inspect.html       seeds beside their nearest pool images, copies, removals: to set thresholds, N and M by
       blobs.json         the shards
Run:   python -m tasks.retrieve --crawl data/crawl --download data/download --filter data/filter --dedup data/dedup \
           --embed data/embed --evaluation inputs/demo/evaluation --out data/retrieve
Cost:  k-means is n x num_clusters x d multiplications an iteration, the search n x seeds x d once; then one copy of the
       chosen images. All of it is shared by the job's processes, with the same result for any number of them, but not
       by an array: k-means needs its processes to talk. Descriptors are read a block at a time, from where the store
       is; tables are streamed. A killed job goes on from the last iteration of k-means, or piece of the search, that
       was saved: one a minute. Memory of a process: benchmarks/results/retrieve_memory.md, and some 100 bytes a seed.
       On a GPU only its k-means was run (benchmarks/results/gpu.md).
"""

import logging
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from dinov2.curation.params import ChooseParams, ClusterParams, InspectParams
from dinov2.data.params import Weight
from dinov2.params import InputError, Params
from dinov2.records import CURATED, MANIFEST, REMOVED, Summary, write_json
from dinov2.store import Store
from dinov2.tables import distinct, num_rows, read_batches, write_pieces
from tasks.stage import main

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from dinov2.curation.descriptors import SetName
    from dinov2.curation.retrieve.blocks import Blocks

VERSION = 3
COLLECTIVE = True  # processes share k-means, the search and the packing
log = logging.getLogger(__name__)


class RetrieveParams(Params):
    """From unique images to the curated set."""

    clusters: ClusterParams
    choose: ChooseParams
    """By `seeds` or `balanced`."""
    include_seeds: bool
    """Whether the seeds themselves are part of the curated set."""
    mixture: dict[str, Weight]
    """Source (a seed's label) -> its share of what is trained on, in proportion to the others'; `others`: all sources
    that are not named, and images without one. Empty: every image as often as any."""
    shard_mb: Annotated[int, Field(gt=0)]
    """Size at which a shard is finished."""
    inspect: InspectParams

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = [self.clusters.num_clusters, *(self.choose.coarser if self.choose.kind == "balanced" else [])]
        if any(finer <= coarser for finer, coarser in pairwise(levels)):
            raise ValueError(f"levels have {levels} clusters; each coarser one needs fewer than the one before")
        return self


def run(
    params: RetrieveParams,
    *,
    crawl: Path,
    download: Path,
    filter: Path,
    dedup: Path,
    embed: Path,
    evaluation: Path,
    out: Path,
    work: Path,
    store: Store,
) -> Summary:
    """Cluster the pool, choose from it, write shards, tables and inspection page."""
    # imported in the job, not in the submitting process
    import torch

    from dinov2.curation.descriptors import EMBEDDED
    from dinov2.distributed import local_device, process_group
    from dinov2.heap import keep_heap

    pool, seeds = dedup / "manifest.parquet", dedup / "seeds.parquet"
    num_seeds, num_images = num_rows(seeds, EMBEDDED), num_rows(pool, MANIFEST)
    if not num_images or (not num_seeds and params.choose.kind == "seeds"):
        raise InputError(
            f"{dedup} holds {num_images} pool images and {num_seeds} seeds, and retrieval needs some of both; look at "
            "dedup and its inputs, or set retrieve.choose to kind: balanced, which needs no seeds"
        )
    shards = (shard for table in (seeds, pool) for shard in distinct(table, MANIFEST, "shard"))
    store.check(shards, needed_by=pool)
    keep_heap()
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # the bounds in nearest.py count on it
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    device = local_device()
    inputs = {"crawl": crawl, "download": download, "filter": filter, "dedup": dedup, "embed": embed}
    with process_group(device):
        return _curate(
            params, pool, seeds, device, inputs=inputs, evaluation=evaluation, out=out, work=work, store=store
        )


def _curate(
    params: RetrieveParams, pool: Path, seeds: Path, device: "torch.device", *,
    inputs: dict[str, Path], evaluation: Path, out: Path, work: Path, store: Store,
) -> Summary:  # fmt: skip
    """All of it, in every process; the first one writes."""
    import numpy as np
    import torch

    from dinov2.curation.inspect import inspection_page
    from dinov2.curation.retrieve.choose import FATES, TAKEN, balanced, by_seeds
    from dinov2.curation.retrieve.curated import CuratedRows, left_out, read_seeds
    from dinov2.curation.retrieve.packing import pack, packing_parts
    from dinov2.curation.retrieve.saved import Saved
    from dinov2.distributed import all_reduce_sum, rank, world_size

    saved = Saved(work / "saved", device)
    good, blocks = _usable(pool, "pool", inputs["embed"], store, device)
    if params.choose.kind == "seeds":
        usable, seed_blocks = _usable(seeds, "seeds", inputs["embed"], store, device)
        given = read_seeds(seeds, np.flatnonzero(usable))
        chosen = by_seeds(
            params.clusters, params.choose, blocks, given.sources, seed_blocks, device=device, saved=saved
        )
    else:
        given = read_seeds(seeds, np.arange(num_rows(seeds)))
        chosen = balanced(params.clusters, params.choose, blocks, device=device, saved=saved)
    fate = np.full(len(good), FATES.index("bad_descriptor"), np.int8)
    fate[good] = chosen.fate
    curated = CuratedRows(pool, fate, chosen, given, include_seeds=params.include_seeds)
    if not len(curated):
        raise InputError("no pool image is near any seed; lower retrieve.choose.min_cosine")
    _check_mixture(params.mixture, curated.sources())

    parts = packing_parts(curated.lengths(), params.shard_mb)
    places = [work / "packed" / f"{number:06d}.parquet" for number in range(len(parts))]
    for first in range(0, len(parts), world_size()):
        for number in range(first + rank(), min(first + rank() + 1, len(parts))):
            pack(curated.rows(parts[number]), places[number], shard_mb=params.shard_mb, store=store)
        all_reduce_sum(torch.zeros(1, device=device)).item()  # wait for each other, not for one that is gone
    if rank() == 0:
        write_pieces(out / "removed.parquet", REMOVED, left_out(pool, fate))
        np.save(out / "centroids.npy", chosen.centroids)
        write_json(out / "mixture.json", params.mixture)
        packed = (batch for place in places for batch in read_batches(place, CURATED))
        write_pieces(out / "manifest.parquet", CURATED, packed)
        store.pin(out, distinct(out / "manifest.parquet", CURATED, "shard"))
        page = inspection_page(
            params.inspect, {**inputs, "retrieve": out}, store, choose=params.choose.model_dump(), folders=(evaluation,)
        )
        (out / "inspect.html").write_text(page)
    counts = {name: int(np.count_nonzero(fate == number)) for number, name in enumerate(FATES) if number != TAKEN}
    return Summary(
        num_in=len(fate), num_kept=len(curated.places),
        dropped={name: num for name, num in sorted(counts.items()) if num},
        metrics={**chosen.metrics, "num_curated": len(curated), "num_seeds": len(given.places)},
    )


def _usable(
    table: Path, name: "SetName", embed: Path, store: Store, device: "torch.device"
) -> "tuple[NDArray[np.bool_], Blocks]":
    """Which images of the table have a descriptor of unit length, and those descriptors."""
    import numpy as np

    from dinov2.curation.retrieve.blocks import open_blocks, unusable

    blocks = open_blocks(embed, name, "semantic", table, store)
    bad = unusable(blocks, device)
    good = np.ones(blocks.num_rows(), bool)
    good[bad] = False
    if not good.any():
        raise InputError(f"none of the {len(good)} images of {name} has a usable descriptor in {embed}; look at embed")
    if not len(bad):
        return good, blocks
    log.warning("%d of %d images of %s have a descriptor that is NaN or not of unit length", len(bad), len(good), name)
    return good, blocks.subset(np.flatnonzero(good))


def _check_mixture(mixture: dict[str, float], sources: set[str | None]) -> None:
    """Raise InputError if a source with a weight has no image, or one with images no weight."""
    strangers = sorted(set(mixture) - {"others"} - sources)
    if strangers:
        raise InputError(
            f"retrieve.mixture has a weight for '{strangers[0]}', but no curated image is of that source; take it out "
            "or mend its spelling"
        )
    unnamed = sorted(source or "images without a source" for source in sources - set(mixture))
    if mixture and bool(unnamed) != ("others" in mixture):
        say = f"no weight for {unnamed[0]}; add it, or `others`" if unnamed else "a weight for `others`; there are none"
        raise InputError(f"retrieve.mixture has {say}")


if __name__ == "__main__":
    sys.exit(main(run))
