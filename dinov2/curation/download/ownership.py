"""Downloaded images to shards: equal bytes once, for the first record that has them, in the order of the records.

First the parts of `num_parts`, each with the ids that are its own, decide which record owns which bytes; then each
block of records packs the images that its records own. So shards depend on records, bytes and params alone.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from dinov2.curation.crawl.optout import is_opt_out
from dinov2.curation.crawl.urls import SHOWN_CHARS, UrlRefusedError, data_uri_name, decode_data_uri
from dinov2.curation.download.answer import NoImageError
from dinov2.curation.download.exchange import give, take
from dinov2.curation.download.images import (
    FOUND,
    DownloadParams,
    found_files,
    is_remote,
    num_blocks,
    read_block,
    read_held,
)
from dinov2.params import InputError
from dinov2.records import MANIFEST, REMOVED, opening, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store
from dinov2.tables import join_tables


class Totals(NamedTuple):
    """Counts over all blocks."""

    num_records: int
    num_kept: int
    dropped: dict[str, int]
    num_bytes: int
    shards: list[str]


def own_part(part: int, params: DownloadParams, *, records: Path, work: Path) -> None:
    """Of the records with equal bytes, of one part's ids, the first is the owner; the others become copies."""
    owned: set[str] = set()
    rows: list[tuple[Any, ...]] = []
    for position, reason, sample_id, *where in take(found_files(params, records, work), part):
        is_copy = sample_id in owned
        if sample_id is not None:
            owned.add(sample_id)
        rows.append((position, "duplicate_bytes" if is_copy else reason, sample_id, *where))
    blocks = [row[0] // params.records_per_part for row in rows]
    give(_owned(work, part), FOUND, rows, blocks, num_blocks(params, records))


def pack_block(block: int, params: DownloadParams, *, records: Path, crawl: Path, work: Path, store: Store) -> None:
    """Store the images that the records of one block own, and write its rows of MANIFEST and REMOVED."""
    found = take((_owned(work, part) for part in range(params.num_parts)), block)
    start = block * params.records_per_part
    removed: list[dict[str, Any]] = []
    folder = work / "packing" / f"{block:06d}"
    with ShardWriter(store, folder, shard_mb=params.shard_mb) as writer:
        for place, (record, row) in enumerate(zip(read_block(block, params, records), found, strict=True)):
            outcome = dict(zip(FOUND.names, row, strict=True))
            assert outcome["position"] == start + place, (block, place, outcome)
            if outcome["reason"] is not None:
                removed.append(_removed(record, outcome["reason"], outcome["id"]))
                continue
            about = {"url": shown_url(record["url"]), "page_url": record["page_url"], "alt": record["alt"]}
            about |= {"mime": outcome["mime"], "width": None, "height": None, "label": None}
            sample_id = writer.add(_bytes_of(record, outcome, params, crawl, work), about)
            if sample_id != outcome["id"]:
                where = work / outcome["bodies"] if outcome["bodies"] else shown_url(record["url"])
                raise InputError(f"{where} changed while the stage ran; remove {work} and run the stage again")
    write_table(work / "packed" / f"{block:06d}-removed.parquet", REMOVED, removed)
    write_table(work / "packed" / f"{block:06d}-manifest.parquet", MANIFEST, writer.rows)
    shutil.rmtree(folder)


def join_blocks(params: DownloadParams, *, records: Path, work: Path, out: Path) -> Totals:
    """Write manifest and removals of all blocks below `out`, a block at a time.

    Raises InputError if more than `max_dropped_share` are dropped for other reasons than copies and opt-outs.
    """
    blocks = [work / "packed" / f"{block:06d}" for block in range(num_blocks(params, records))]
    manifests = [path.with_name(f"{path.name}-manifest.parquet") for path in blocks]
    removals = [path.with_name(f"{path.name}-removed.parquet") for path in blocks]
    dropped: Counter[str] = Counter()
    shards: dict[str, None] = {}
    num_kept = num_bytes = 0
    for manifest, removal in zip(manifests, removals, strict=True):
        with opening(removal):
            dropped.update(pq.read_table(removal, columns=["reason"])["reason"].to_pylist())
        with opening(manifest):
            kept = pq.read_table(manifest, columns=["shard", "length"])
        shards |= dict.fromkeys(kept["shard"].unique().to_pylist())
        num_kept += kept.num_rows
        num_bytes += sum(kept["length"].to_pylist())
    num_records = num_kept + sum(dropped.values())
    _check_share(dropped, num_records, params)
    join_tables(manifests, MANIFEST, out / "manifest.parquet")
    join_tables(removals, REMOVED, out / "removed.parquet")
    return Totals(num_records, num_kept, dict(sorted(dropped.items())), num_bytes, list(shards))


def shown_url(url: str) -> str:
    """A record's URL as tables show it: a `data:` URI by the name of its bytes."""
    if not url.startswith("data:"):
        return url
    try:
        return data_uri_name(*decode_data_uri(url))
    except UrlRefusedError:
        return url[:SHOWN_CHARS]


def _bytes_of(
    record: Mapping[str, Any], outcome: Mapping[str, Any], params: DownloadParams, crawl: Path, work: Path
) -> bytes:
    """The bytes that were found; others where the file that holds them was changed."""
    if not is_remote(record):
        try:
            return read_held(record, params.max_bytes, crawl)
        except NoImageError:
            return b""
    with (work / outcome["bodies"]).open("rb") as bodies:
        bodies.seek(outcome["offset"])
        return bodies.read(outcome["length"])


def _removed(record: Mapping[str, Any], reason: str, sample_id: str | None) -> dict[str, Any]:
    url = shown_url(record["url"])
    return {"id": sample_id, "url": url, "reason": reason, "witness_id": sample_id, "cosine": None}


def _owned(work: Path, part: int) -> Path:
    return work / "owned" / f"{part:06d}.arrow"


def _check_share(dropped: Mapping[str, int], num_records: int, params: DownloadParams) -> None:
    """Raise InputError if too many images could not be had; copies and opt-outs are no failure."""
    failed = {reason: count for reason, count in sorted(dropped.items()) if not _is_willed(reason)}
    if num_records and sum(failed.values()) > params.max_dropped_share * num_records:
        most = max(failed, key=lambda reason: failed[reason])
        raise InputError(
            f"{sum(failed.values())} of {num_records} images can't be had, most of them {most}; mend the crawl or the "
            f"network, or raise download.max_dropped_share ({params.max_dropped_share})"
        )


def _is_willed(reason: str) -> bool:
    return reason == "duplicate_bytes" or is_opt_out(reason)
