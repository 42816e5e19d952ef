"""Embed pool, seeds and evaluation images: copy descriptors and semantic descriptors.

In:    --filter manifest.parquet (the pool); --bootstrap a backbone; --seeds and --evaluation folders of images, a
       folder a label
Out:   {pool,seeds,evaluation}.parquet   EMBEDDED: the images that could be embedded; the seeds are packed into shards
       embeddings.json                   {set: {copy: [blob, ...], semantic: [blob, ...]}}: float16 rows of unit length,
                                         aligned with those tables
       removed/<set>.parquet             REMOVED: unreadable | wrong_bytes (not those of the id) | undecodable |
                                         format_not_packed (seeds) | no_descriptor (NaN or zero) | duplicate
       blobs.json                        the blobs of descriptors and of the seeds' shards
Run:   python -m tasks.embed --filter data/filter --bootstrap data/bootstrap --seeds inputs/demo/seeds \
           --evaluation inputs/demo/evaluation --out data/embed
Cost:  every image decoded once, one forward each; a part is a block of `block_rows` images, which is what a kill loses.
       A worker holds its networks, a block's rows, and `batch_size` prepared images and their activations a core
"""

import logging
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dinov2.curation.embed.sets import NAMES, Sets
from dinov2.curation.params import CopyParams, SemanticParams, ThumbnailParams
from dinov2.params import InputError, Params
from dinov2.records import Summary, write_json
from dinov2.store import Store
from tasks.fan_out import Phase
from tasks.stage import main

if TYPE_CHECKING:
    from dinov2.curation.embed.embedder import Embedder
    from dinov2.curation.embed.finish import Gathered

VERSION = 3
log = logging.getLogger(__name__)


class EmbedParams(Params):
    """How images are embedded."""

    semantic: SemanticParams
    """What an image shows: `kind: ours` (the backbone), `torchscript` or `onnx`."""
    copy_descriptor: CopyParams
    """What copies are found by: `kind: thumbnail` or `kind: sscd`."""
    block_rows: Annotated[int, Field(gt=0)]
    """Images in a block: a part of the work, and what is lost at most when it is killed."""
    batch_size: Annotated[int, Field(gt=0)]
    """Images that a thread decodes and embeds at once."""
    shard_mb: Annotated[int, Field(gt=0)]
    """Size at which a shard of seeds is finished; the last one of a block is smaller."""
    may_be_empty: tuple[Literal["seeds", "evaluation"], ...]
    """Folders in which no image is no mistake: `seeds` where retrieve.choose is balanced and bootstrap.backbone given,
    `evaluation` where nothing is held out."""


def count_blocks(
    params: EmbedParams,
    *,
    filter: Path,
    seeds: Path,
    evaluation: Path,
    work: Path,
    store: Store,
) -> int:
    """Number of blocks of all sets; lists the folders and sees that no shard is absent."""
    sets = _sets(params, filter, seeds, evaluation, work)
    sets.prepare(store)
    return len(sets.spans(params.block_rows))


def embed_block(
    part: int,
    params: EmbedParams,
    *,
    filter: Path,
    bootstrap: Path,
    seeds: Path,
    evaluation: Path,
    work: Path,
    store: Store,
) -> None:
    """Decode and embed one block into work/blocks/."""
    from dinov2.curation.embed.embedder import save_block  # imported in the job, not in the submitting process

    sets = _sets(params, filter, seeds, evaluation, work)
    span = sets.spans(params.block_rows)[part]
    rows = sets.rows(span)
    embedder = _embedder(bootstrap, params)  # pyright: ignore[reportArgumentType] - frozen params can be hashed
    with sets.reader(span.name, store) as read:
        block = embedder.block(rows, read, first=span.start, to_pack=span.name == "seeds")
    lost = [row["index"] - span.start for row in block.removed if row["reason"] in ("unreadable", "wrong_bytes")]
    for shard in sorted({rows[index].get("shard") for index in lost} - {None}):
        log.warning("shard %s does not hold what the manifest says; those images are left out", shard)
    is_thumbnail = isinstance(params.copy_descriptor, ThumbnailParams)
    save_block(span.file(work / "blocks", ".npz"), block, with_moments=is_thumbnail and span.name == "pool")


@lru_cache(maxsize=1)  # a worker embeds many blocks
def _embedder(bootstrap: Path, params: EmbedParams) -> "Embedder":
    from dinov2.curation.embed.embedder import Embedder

    return Embedder(bootstrap, params.semantic, params.copy_descriptor, batch_size=params.batch_size)


def count_one() -> int:
    """All blocks are looked at in one part."""
    return 1


def fit_copies(part: int, params: EmbedParams, *, filter: Path, seeds: Path, evaluation: Path, work: Path) -> None:
    """Find repeated images and, for thumbnails, the whitening; into work/fitted/."""
    from dinov2.curation.embed.finish import fit

    sets = _sets(params, filter, seeds, evaluation, work)
    spans = sets.spans(params.block_rows)
    blocks = {name: [span.file(work / "blocks", ".npz") for span in spans if span.name == name] for name in NAMES}
    fit(blocks, params.copy_descriptor, work / "fitted", num_rows={name: sets.size(name) for name in NAMES})


def finish_block(
    part: int,
    params: EmbedParams,
    *,
    filter: Path,
    seeds: Path,
    evaluation: Path,
    work: Path,
    store: Store,
) -> None:
    """Put the descriptors of one block into the store, and the images of seeds; tables go to work/finished/."""
    from dinov2.curation.embed.finish import finish_block, pack_images

    sets = _sets(params, filter, seeds, evaluation, work)
    span = sets.spans(params.block_rows)[part]
    with sets.reader(span.name, store) as read:
        folder = span.file(work / "packing", "")
        pack = partial(pack_images, read=read, store=store, folder=folder, shard_mb=params.shard_mb)
        finish_block(
            span, sets.rows(span),
            params=params.copy_descriptor, work=work, store=store, drop_repeated=span.name != "evaluation",
            pack=pack if span.name == "seeds" else None,
        )  # fmt: skip


PHASES = (
    Phase("embed", count_blocks, embed_block),
    Phase("fit", count_one, fit_copies),
    Phase("finish", count_blocks, finish_block),
)


def run(
    params: EmbedParams,
    *,
    filter: Path,
    bootstrap: Path,
    seeds: Path,
    evaluation: Path,
    out: Path,
    work: Path,
    store: Store,
) -> Summary:
    """Join what the parts made."""
    from dinov2.curation.embed.finish import gather

    sets = _sets(params, filter, seeds, evaluation, work)
    spans = sets.spans(params.block_rows)
    done: dict[str, Gathered] = {}
    for name in NAMES:
        gathered = done[name] = gather(name, [span for span in spans if span.name == name], work, out)
        if not gathered.num_kept and (gathered.removed or name not in params.may_be_empty):
            why = ", ".join(f"{num} {reason}" for reason, num in gathered.removed.items())
            raise InputError(f"none of the images of {name} can be embedded ({why}); give others")
        if gathered.removed:
            log.warning("%s: left out %s, listed in removed/%s.parquet", name, gathered.removed, name)
    write_json(out / "embeddings.json", {name: gathered.blobs for name, gathered in done.items()})
    blobs = [blob for gathered in done.values() for kind in gathered.blobs.values() for blob in kind]
    store.pin(out, [*blobs, *done["seeds"].shards])
    return Summary(
        num_in=sets.size("pool"),
        num_kept=done["pool"].num_kept,
        dropped=done["pool"].removed,
        metrics={
            "num_seeds": done["seeds"].num_kept,
            "num_seeds_removed": sum(done["seeds"].removed.values()),
            "num_evaluation": done["evaluation"].num_kept,
            "num_evaluation_removed": sum(done["evaluation"].removed.values()),
            **{f"num_{name}_other_files": sets.num_others(name) for name in ("seeds", "evaluation")},
        },
    )


def _sets(params: EmbedParams, filter_out: Path, seeds: Path, evaluation: Path, work: Path) -> Sets:
    return Sets(filter_out / "manifest.parquet", seeds, evaluation, work / "listed", params.may_be_empty)


if __name__ == "__main__":
    sys.exit(main(run))
