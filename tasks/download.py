"""Bring the images of the records into shards; equal bytes are stored once.

In:    records.parquet of crawl, and the crawled folder itself, for the answers that its WARC files hold
Out:   out/manifest.parquet    MANIFEST: id, shard, offset, length, mime, URL; width and height are null until filter
       out/removed.parquet     REMOVED: every record without an image of its own, with its reason
       out/blobs.json          the shards and their sizes; they lie in the store
Run:   python -m tasks.download --crawl_records data/crawl --crawl inputs/demo/crawl --out data/download
Cost:  about 1,000 images a second and core from a WARC, else the network's; disk: what is fetched, twice
"""

import sys
from pathlib import Path

from dinov2.curation.download import DownloadParams, download_images
from dinov2.records import IMAGE_RECORDS, MANIFEST, REMOVED, Summary, count_reasons, read_table, write_table
from dinov2.store import Store
from tasks.stage import main

VERSION = 1


def run(params: DownloadParams, *, crawl_records: Path, crawl: Path, out: Path, work: Path, store: Store) -> Summary:
    """Store the images of the records of `crawl_records`."""
    records = read_table(crawl_records / "records.parquet", IMAGE_RECORDS)
    result = download_images(records, params, crawl=crawl, work=work, store=store)
    num_kept = write_table(out / "manifest.parquet", MANIFEST, result.rows)
    write_table(out / "removed.parquet", REMOVED, result.removed)
    store.pin(out, [row["shard"] for row in result.rows])
    return Summary(
        num_in=len(records),
        num_kept=num_kept,
        dropped=count_reasons(result.removed),
        metrics=result.metrics,
    )


if __name__ == "__main__":
    sys.exit(main(run))
