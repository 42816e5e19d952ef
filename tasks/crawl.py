"""Find the images that crawled pages show: one record a URL.

In:    a folder of *.warc, *.warc.gz and *.html files, at any depth
Out:   out/records.parquet    IMAGE_RECORDS: URL, page, alternative text, and where the crawl holds the answer
       out/removed.parquet    REMOVED: every other <img> with its reason; id is null
Run:   python -m tasks.crawl --crawl inputs/demo/crawl --out data/crawl
Cost:  one pass over the files on one core, about 1,000 pages a second; memory grows with the number of URLs
"""

import sys
from pathlib import Path

from dinov2.curation.crawl import CrawlParams, crawl_images
from dinov2.records import IMAGE_RECORDS, REMOVED, Summary, count_reasons, write_table
from tasks.stage import main

VERSION = 1


def run(params: CrawlParams, *, crawl: Path, out: Path) -> Summary:
    """Write the records of all images of the pages in `crawl`."""
    result = crawl_images(params, crawl)
    num_kept = write_table(out / "records.parquet", IMAGE_RECORDS, result.records)
    num_removed = write_table(out / "removed.parquet", REMOVED, result.removed)
    return Summary(
        num_in=num_kept + num_removed,
        num_kept=num_kept,
        dropped=count_reasons(result.removed),
        metrics=result.metrics,
    )


if __name__ == "__main__":
    sys.exit(main(run))
