"""Bring the images of the records into shards; equal bytes are stored once.

In:    records.parquet and refused_domains.txt of crawl, and the crawled folder, for answers that its WARC files hold
Out:   out/manifest.parquet    MANIFEST: id, shard, offset, length, mime, URL; width and height are null until filter
       out/removed.parquet     REMOVED: every record without an image of its own, with its reason
       out/blobs.json          the shards and their sizes; they lie in the store
Run:   python -m tasks.download --crawl_records data/crawl --crawl inputs/demo/crawl --out data/download
Cost:  about 1,000 images of 50 kB a second and core (benchmarks/results/download.md), or what hosts bear;
       disk: what is fetched over HTTP, twice while it runs; memory: 1 kB a record of a part
"""

import shutil
import sys
from functools import partial
from pathlib import Path

from dinov2.curation.download import images
from dinov2.curation.download.images import DownloadParams
from dinov2.curation.download.ownership import join_blocks, own_part, pack_block
from dinov2.params import InputError
from dinov2.records import Summary
from dinov2.store import Store
from tasks.fan_out import MADE, Phase
from tasks.stage import main

VERSION = 3


def count_blocks(params: DownloadParams, *, crawl_records: Path) -> int:
    """Blocks of records."""
    return images.num_blocks(params, _records(crawl_records))


def count_host_parts(params: DownloadParams) -> int:
    """Parts of hosts; none without a network."""
    return images.num_host_parts(params)


def count_id_parts(params: DownloadParams) -> int:
    """Parts of ids."""
    return params.num_parts


def look_up(part: int, params: DownloadParams, *, crawl_records: Path, crawl: Path, work: Path) -> None:
    """Read what the crawl holds of one block."""
    images.look_up_block(part, params, records=_records(crawl_records), crawl=crawl, work=work)


def fetch(part: int, params: DownloadParams, *, number: int, crawl_records: Path, work: Path) -> None:
    """Ask the hosts of one part, for the `number`-th time."""
    images.fetch_part(part, number, params, records=_records(crawl_records), work=work)


def own(part: int, params: DownloadParams, *, crawl_records: Path, work: Path) -> None:
    """Decide which records own the bytes of one part's ids."""
    own_part(part, params, records=_records(crawl_records), work=work)


def pack(part: int, params: DownloadParams, *, crawl_records: Path, crawl: Path, work: Path, store: Store) -> None:
    """Shards of one block."""
    pack_block(part, params, records=_records(crawl_records), crawl=crawl, work=work, store=store)


PHASES = (
    Phase("look-up", count_blocks, look_up),
    *(Phase(f"fetch-{n}", count_host_parts, partial(fetch, number=n)) for n in range(images.NUM_ROUNDS)),
    Phase("own", count_id_parts, own),
    Phase("pack", count_blocks, pack),
)


def run(params: DownloadParams, *, crawl_records: Path, crawl: Path, out: Path, work: Path, store: Store) -> Summary:
    """Join what the parts made."""
    del crawl  # the phases read it
    try:
        totals = join_blocks(params, records=_records(crawl_records), work=work, out=out)
    except InputError:
        shutil.rmtree(work / MADE)  # the next run tries again what may pass; what was fetched it finds in the logs
        raise
    store.pin(out, totals.shards)
    for folder in work.glob("fetched-*"):
        shutil.rmtree(folder)  # the bodies are in shards now
    return Summary(
        num_in=totals.num_records,
        num_kept=totals.num_kept,
        dropped=totals.dropped,
        metrics={"stored_mb": totals.num_bytes / 1e6},
    )


def _records(crawl_records: Path) -> Path:
    return crawl_records / "records.parquet"


if __name__ == "__main__":
    sys.exit(main(run))
