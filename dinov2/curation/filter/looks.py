"""One decode of each image, for all that is asked of it: statistics, thumbnail, NSFW score, faces, and their blurring.

Done in parts of consecutive rows of the manifest. A part leaves a table below `work` and, where faces were blurred, one
shard in the store. By as many threads as there are cores, which changes nothing: each image is looked at alone.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dinov2.curation.filter.blurring import blur_faces, encode_jpeg
from dinov2.curation.filter.faces import find_faces, open_faces
from dinov2.curation.filter.filters import FilterParams, Look, judge, look_at
from dinov2.curation.filter.nsfw import nsfw_score, open_nsfw
from dinov2.params import InputError
from dinov2.records import LOOKS, MANIFEST, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store
from dinov2.tables import open_table, read_rows

BATCH_IMAGES = 256  # between two looks at the results: bounds what waits in memory
ONE_SHARD_MB = 1_000_000  # a part is small enough for one

LOOKED = pa.schema(
    [
        *MANIFEST,  # as it is kept: a blurred image has its new id, place and size
        *[field for field in LOOKS if field.name != "id"],
        ("reason", pa.string()),  # null where nothing is wrong with it
        ("thumbnail", pa.binary()),  # grey, row by row; null where there is a reason
    ]
)


class Seen(NamedTuple):
    """What became of one image."""

    reason: str | None
    look: Look | None
    """None where it could not be decoded."""
    num_faces: int | None
    """None where nobody asked."""
    blurred: bytes | None
    """A JPEG, where it has faces."""


def count_parts(params: FilterParams, *, download: Path) -> int:
    """Parts of the manifest that `download` left."""
    with open_table(download / "manifest.parquet", MANIFEST) as file:
        return -(-file.metadata.num_rows // params.part_images)


def part_path(work: Path, part: int) -> Path:
    """Where a part's table lies."""
    return work / "looks" / f"{part:06d}.parquet"


def look_part(part: int, params: FilterParams, *, download: Path, work: Path, store: Store) -> None:
    """Look at the images of one part.

    Raises InputError if a network that params name, or a shard, is not there.
    """
    if params.nsfw is not None:  # before any image, and by one thread
        open_nsfw(params.nsfw)
    if params.faces is not None:
        open_faces(params.faces)
    manifest = download / "manifest.parquet"
    start = part * params.part_images
    rows = read_rows(manifest, MANIFEST, start, start + params.part_images)
    for index, row in enumerate(rows):
        if any(row[name] is None for name in ("id", "shard", "offset", "length")):
            raise InputError(f"{manifest}: row {start + index} does not say where its image lies; run download again")
    store.check((row["shard"] for row in rows), needed_by=manifest)
    reader = ShardReader(store)
    look = partial(see, reader=reader, params=params)
    looked: list[dict[str, Any]] = []
    blurred: list[int] = []
    folder = work / "blurred" / f"{part:06d}"
    with ShardWriter(store, folder, shard_mb=ONE_SHARD_MB) as writer, ThreadPoolExecutor(_num_threads()) as threads:
        for first in range(0, len(rows), BATCH_IMAGES):
            batch = rows[first : first + BATCH_IMAGES]
            for row, seen in zip(batch, threads.map(look, batch), strict=True):
                about = _measured(row, seen)
                if seen.blurred is not None:
                    blurred.append(len(looked))
                    kept = {name: about[name] for name in MANIFEST.names}
                    writer.add(seen.blurred, {**kept, "mime": "image/jpeg", "source_id": row["id"]})
                looked.append(about)
    for index, new in zip(blurred, writer.rows, strict=True):
        looked[index] |= new
    reader.close()
    write_table(part_path(work, part), LOOKED, looked)


def see(row: Mapping[str, Any], reader: ShardReader, params: FilterParams) -> Seen:
    """Decode the image of a manifest row and look at it; networks see only what nothing else speaks against."""
    from dinov2.data.decode import DecodeError, TooLargeError, decode_rgb  # imported in the job, not in the submitter

    try:
        data = reader.read(row)
    except OSError:
        return Seen("damaged_shard", None, None, None)
    if hashlib.sha256(data).hexdigest() != row["id"]:
        return Seen("damaged_shard", None, None, None)
    try:
        image = decode_rgb(data)
    except DecodeError as error:
        return Seen("too_large" if isinstance(error, TooLargeError) else "undecodable", None, None, None)
    look = look_at(image, params.pca_hash.thumbnail_px)
    reason = judge(look, params)
    if reason is None and params.nsfw is not None:
        look = look._replace(nsfw_score=nsfw_score(image, params.nsfw))
        reason = judge(look, params)
    if reason is not None or params.faces is None:
        return Seen(reason, look, None, None)
    boxes = find_faces(image, params.faces)
    if not len(boxes):
        return Seen(None, look, 0, None)
    return Seen(None, look, len(boxes), encode_jpeg(blur_faces(image, boxes, params.faces), params.faces.jpeg_quality))


def _measured(row: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
    """The row of LOOKED of an image, as yet under its own id."""
    measured = {**row, "reason": seen.reason, "num_faces": seen.num_faces}
    if seen.look is None:
        return measured
    look = seen.look._asdict()
    return {**measured, **look, "thumbnail": look["thumbnail"].tobytes() if seen.reason is None else None}


def _num_threads() -> int:
    """As many as the job was given cores; all where nobody says."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
