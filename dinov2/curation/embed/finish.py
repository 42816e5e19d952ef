"""From the blocks that were embedded to descriptors in the store and tables of their samples.

`fit` looks at all blocks once: it finds images with equal bytes and, for thumbnails, the whitening. Then each block is
finished by itself, and at the end the blocks' tables are joined. Memory is that of one block, or of the ids of one
bucket (some 4 million), however large the set is; sums are added in the order of the blocks.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from dinov2.curation.descriptors import EMBEDDED, SetName, store_block
from dinov2.curation.embed.embedder import load_block, load_moments, load_samples, one_thread, unit
from dinov2.curation.embed.sets import Span
from dinov2.curation.embed.thumbnail import Whitening, added, moments, whiten
from dinov2.curation.embed.thumbnail import fit as fit_whitening
from dinov2.curation.params import CopyParams, ThumbnailParams
from dinov2.params import InputError
from dinov2.records import REMOVED, count_reasons, write_json, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store
from dinov2.tables import join_tables

Row = dict[str, Any]
BUCKET_ROWS = 2**22
IDENTITY = np.dtype([("id", "S32"), ("index", "<i8")])


def fit(blocks: Mapping[str, Sequence[Path]], params: CopyParams, folder: Path, *, num_rows: Mapping[str, int]) -> None:
    """Write what finishing needs to know of all blocks of the sets (`num_rows` long, at most) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, paths in blocks.items():
        np.save(folder / f"repeated-{name}.npy", repeated(paths, folder, num_rows=num_rows[name]))
    if isinstance(params, ThumbnailParams):
        with one_thread():
            none = moments(np.empty((0, 3 * params.size_px**2), np.float32))
            pool = added((found for found in map(load_moments, blocks["pool"]) if found is not None), none)
            np.savez(folder / "whitening.npz", **fit_whitening(pool, params)._asdict())


def repeated(blocks: Iterable[Path], folder: Path, *, num_rows: int) -> Int64[np.ndarray, " r"]:
    """Indices in their set of images whose bytes came before, ascending.

    Ids go to files by their first bits, so that equal ones meet in one file; these are looked through one by one.
    """
    num_buckets = 1 + num_rows // BUCKET_ROWS
    found = [np.empty(0, np.int64)]
    with TemporaryDirectory(dir=folder) as buckets:
        for path in blocks:
            samples = load_samples(path)
            rows = np.empty(len(samples), IDENTITY)
            rows["id"] = np.frombuffer(bytes.fromhex("".join(sample["id"] for sample in samples)), "S32")
            rows["index"] = [sample["index"] for sample in samples]
            first_bits = np.ascontiguousarray(rows["id"]).view(">u4")[::8].astype(np.uint64)
            places = first_bits * np.uint64(num_buckets) >> np.uint64(32)
            for place in np.unique(places):
                with Path(buckets, str(place)).open("ab") as stream:
                    stream.write(rows[places == place].tobytes())
        for bucket in Path(buckets).iterdir():
            rows = np.fromfile(bucket, IDENTITY)
            is_repeated = np.ones(len(rows), bool)
            is_repeated[np.unique(rows["id"], return_index=True)[1]] = False  # of equal ones, the first
            found.append(rows["index"][is_repeated])
    return np.sort(np.concatenate(found))


class Finished(NamedTuple):
    """A finished block: what is in the store, and what was left out."""

    copy: str | None
    """Blob of copy descriptors; None: no image is left."""
    semantic: str | None
    shards: list[str]
    """Blobs of its images, where they were packed."""
    removed: dict[str, int]
    """Number of images left out, by reason."""


def finish_block(
    span: Span,
    origin: Sequence[Row],
    *,
    params: CopyParams,
    work: Path,
    store: Store,
    drop_repeated: bool,
    pack: Callable[[Sequence[Row]], list[Row]] | None,
) -> None:
    """Descriptors of a block into the store, tables of its samples below `work`; `origin` are its rows of the set.

    `pack` puts images into shards and returns their rows with their places.
    """
    block = load_block(span.file(work / "blocks", ".npz"))
    removed = [lost(origin[sample["index"] - span.start], sample) for sample in block.removed]
    chosen = np.ones(len(block.samples), bool)
    if drop_repeated:
        indices = [sample["index"] for sample in block.samples]
        chosen = ~np.isin(indices, np.load(work / "fitted" / f"repeated-{span.name}.npy", mmap_mode="r"))
    with one_thread():
        copy, is_finite = unit(_copy_rows(block.encoded, params, work / "fitted"))
    rows = []
    for sample, is_first, keep in zip(block.samples, chosen, is_finite, strict=True):
        row = origin[sample["index"] - span.start]
        if is_first and keep:
            about = {name: sample[name] for name in ("id", "mime", "width", "height", "length")}
            rows.append({**row, **about})
        elif keep:
            removed.append(lost(row, {**sample, "reason": "duplicate", "witness_id": sample["id"]}))
        else:
            removed.append(lost(row, {**sample, "reason": "no_descriptor"}))
    if pack is not None and rows:
        rows = pack(rows)
    kept = chosen & is_finite
    copies, semantics = (store_block(store, work, v[kept]) if rows else None for v in (copy, block.semantic))
    folder = work / "finished"
    write_table(span.file(folder, ".parquet"), EMBEDDED, rows)
    write_table(span.file(folder, ".removed.parquet"), REMOVED, removed)
    shards = sorted({row["shard"] for row in rows}) if pack is not None else []
    write_json(span.file(folder, ".json"), Finished(copies, semantics, shards, count_reasons(removed))._asdict())


def _copy_rows(encoded: Float[np.ndarray, "n c"], params: CopyParams, fitted: Path) -> Float[np.ndarray, "n d"]:
    if not isinstance(params, ThumbnailParams) or not len(encoded):
        return encoded
    with np.load(fitted / "whitening.npz") as arrays:
        return whiten(encoded, Whitening(**arrays))


def lost(origin: Row, sample: Row) -> Row:
    """The row of REMOVED of an image that was left out."""
    return {
        "id": origin["id"] or sample.get("id"),
        "url": origin["url"] or origin["path"],
        "reason": sample["reason"],
        "witness_id": sample.get("witness_id"),
    }


def pack_images(
    rows: Sequence[Row], read: Callable[[Row], bytes], *, store: Store, folder: Path, shard_mb: int
) -> list[Row]:
    """Copy images into shards, so that later stages read them like the pool; rows with their places.

    Raises InputError if an image is not what it was when it was embedded.
    """
    with ShardWriter(store, folder, shard_mb=shard_mb) as writer:
        for row in rows:
            if writer.add(read(row), row) != row["id"]:
                raise InputError(f"{row['path']} changed while the stage ran; leave the folder alone and run it again")
    return writer.rows


class Gathered(NamedTuple):
    """A whole set."""

    num_kept: int
    removed: dict[str, int]
    blobs: dict[str, list[str]]
    """{"copy": blocks, "semantic": blocks}, aligned with the set's table."""
    shards: list[str]


def gather(name: SetName, spans: Sequence[Span], work: Path, out: Path) -> Gathered:
    """Join the tables of a set's finished blocks, of which there may be none, below `out`."""
    folder = work / "finished"
    num_kept = join_tables((span.file(folder, ".parquet") for span in spans), EMBEDDED, out / f"{name}.parquet")
    removed = (span.file(folder, ".removed.parquet") for span in spans)
    join_tables(removed, REMOVED, out / "removed" / f"{name}.parquet")
    done = [Finished(**json.loads(span.file(folder, ".json").read_text())) for span in spans]
    blobs = {kind: [blob for block in done if (blob := getattr(block, kind))] for kind in ("copy", "semantic")}
    reasons = sum((Counter(block.removed) for block in done), Counter())
    return Gathered(num_kept, dict(sorted(reasons.items())), blobs, [shard for block in done for shard in block.shards])
