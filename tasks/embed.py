"""Embed pool, seeds and evaluation images: copy descriptors and semantic descriptors.

In:    --filter manifest.parquet (the pool); --bootstrap a backbone; --seeds and --evaluation folders of images, a
       folder a label
Out:   {pool,seeds,evaluation}.parquet   EMBEDDED: the images that could be embedded; the seeds are packed into shards
       embeddings.json                   {set: {copy: [blob, ...], semantic: [blob, ...]}}: float16 rows of unit length,
                                         aligned with those tables
       removed/<set>.parquet             REMOVED: images that can't be read, and seeds whose bytes came before
       blobs.json                        the blobs of descriptors and of the seeds' shards
Run:   python -m tasks.embed --filter data/filter --bootstrap data/bootstrap --seeds inputs/demo/seeds \
           --evaluation inputs/demo/evaluation --out data/embed
Cost:  every image decoded once, one forward each; a killed run loses one block
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dinov2.curation.descriptors import EMBEDDED
from dinov2.curation.params import CopyParams
from dinov2.params import InputError, Params
from dinov2.records import MANIFEST, REMOVED, Summary, count_reasons, read_table, write_json, write_table
from dinov2.store import Store
from tasks.stage import main

if TYPE_CHECKING:
    from dinov2.data.sources import FolderSource

VERSION = 1
log = logging.getLogger(__name__)

Row = dict[str, Any]


class EmbedParams(Params):
    """How images are embedded."""

    copy_descriptor: CopyParams
    """What copies are found by: `kind: thumbnail` or `kind: sscd`."""
    block_rows: Annotated[int, Field(gt=0)]
    """Images in a block: what is lost at most when the stage is killed."""
    batch_size: Annotated[int, Field(gt=0)]
    """Images in a forward pass."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the backbone."""
    shard_mb: Annotated[int, Field(gt=0)]
    """Size at which a shard of seeds is finished."""


def run(
    params: EmbedParams,
    *,
    filter: Path,  # noqa: A002 - the stage's name
    bootstrap: Path,
    seeds: Path,
    evaluation: Path,
    out: Path,
    work: Path,
    store: Store,
) -> Summary:
    """Embed the three sets block by block, then fit and finish the copy descriptors."""
    # imported in the job, not in the submitting process
    from dinov2.curation.embed import Embedder, embed_blocks, finish_set, fit
    from dinov2.data.sources import FolderSource, ShardSource
    from dinov2.shards import ShardReader

    pool = read_table(filter / "manifest.parquet", MANIFEST)
    if not pool:
        raise InputError(f"{filter} kept no image; lower the thresholds of filter, or crawl other pages")
    store.check((row["shard"] for row in pool), needed_by=filter / "manifest.parquet")
    embedder = Embedder(
        bootstrap, params.copy_descriptor, batch_size=params.batch_size, bfloat16=params.precision == "bf16"
    )
    reader = ShardReader(store)
    folders = {"seeds": FolderSource(seeds), "evaluation": FolderSource(evaluation)}
    sources = {"pool": ShardSource(pool, reader), **folders}
    blocks = {
        name: embed_blocks(
            embedder, source, name,
            block_rows=params.block_rows, to_pack=name == "seeds", folder=work / "blocks",
        )
        for name, source in sources.items()
    }
    reader.close()
    fit(embedder, blocks["pool"])
    rows: dict[str, list[Row]] = {}
    removed: dict[str, list[Row]] = {}
    blobs: dict[str, dict[str, list[str]]] = {}
    for name, paths in blocks.items():
        done = finish_set(embedder, paths, store=store, work=work, drop_repeated=name != "evaluation")
        origin = pool if name == "pool" else _folder_rows(folders[name])
        rows[name] = [_joined(origin[sample["index"]], sample) for sample in done.samples]
        removed[name] = [_lost(origin[sample["index"]], sample) for sample in done.removed]
        blobs[name] = done.blobs
        if not rows[name]:
            raise InputError(f"none of the {len(origin)} images of {name} can be read ({count_reasons(removed[name])})")
        if name != "pool" and removed[name]:
            log.warning("%s: left out %s, listed in removed/%s.parquet", name, count_reasons(removed[name]), name)
    rows["seeds"] = _pack(rows["seeds"], seeds, params.shard_mb, work, store)
    _write(rows, removed, blobs, out, store)
    return Summary(
        num_in=len(pool),
        num_kept=len(rows["pool"]),
        dropped=count_reasons(removed["pool"]),
        metrics={
            "num_seeds": len(rows["seeds"]),
            "num_seeds_removed": len(removed["seeds"]),
            "num_evaluation": len(rows["evaluation"]),
            "num_evaluation_removed": len(removed["evaluation"]),
        },
    )


def _write(
    rows: dict[str, list[Row]],
    removed: dict[str, list[Row]],
    blobs: dict[str, dict[str, list[str]]],
    out: Path,
    store: Store,
) -> None:
    """Tables, the index of descriptors, and what they need from the store."""
    for name, samples in rows.items():
        write_table(out / f"{name}.parquet", EMBEDDED, samples)
        write_table(out / "removed" / f"{name}.parquet", REMOVED, removed[name])
    write_json(out / "embeddings.json", blobs)
    descriptors = [blob for kinds in blobs.values() for names in kinds.values() for blob in names]
    store.pin(out, [*descriptors, *(row["shard"] for row in rows["seeds"])])


def _folder_rows(source: "FolderSource") -> list[Row]:
    """Rows of MANIFEST of a folder's images, as far as their path tells them."""
    unknown = dict.fromkeys(EMBEDDED.names)
    return [{**unknown, "path": source.id(i), "label": source.label(i)} for i in range(len(source))]


def _joined(origin: Row, sample: Row) -> Row:
    """The row of an embedded image. Raises InputError if its bytes are not those that the manifest promised."""
    if origin["id"] not in (None, sample["id"]):
        raise InputError(
            f"shard {origin['shard']} holds other bytes at {origin['offset']} than the manifest says (image "
            f"{origin['id']}); run download and filter again"
        )
    about = {name: sample[name] for name in ("id", "mime", "width", "height", "length")}
    return {**dict.fromkeys(EMBEDDED.names), **origin, **about}


def _lost(origin: Row, sample: Row) -> Row:
    return {
        "id": origin["id"] or sample.get("id"),
        "url": origin["url"] or origin.get("path"),
        "reason": sample["reason"],
        "witness_id": sample.get("witness_id"),
    }


def _pack(rows: Sequence[Row], seeds: Path, shard_mb: int, work: Path, store: Store) -> list[Row]:
    """Copy the seeds into shards, so that later stages read them like the pool; rows with their places."""
    from dinov2.shards import ShardWriter

    with ShardWriter(store, work / "seed-shards", shard_mb=shard_mb) as writer:
        for row in rows:
            writer.add((seeds / row["path"]).read_bytes(), row)
    return writer.rows


if __name__ == "__main__":
    sys.exit(main(run))
