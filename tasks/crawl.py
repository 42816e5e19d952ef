"""Find the images that crawled pages show: one record a URL.

In:    a folder, at any depth, of WARC and WAT files (*.warc, *.warc.gz, *.wat, *.wat.gz), pages (*.html), sitemaps
       (*.xml, *.xml.gz) and lists of image URLs, one a line (*urls.txt, *urls.txt.gz)
Out:   out/records.parquet    IMAGE_RECORDS: URL, page, alternative text, and where the crawl holds the answer
       out/refused_domains.txt  all of the params and their files, for redirects
       out/removed.parquet    REMOVED: every other reference of an <img> with its reason; id is null
Run:   python -m tasks.crawl --crawl inputs/demo/crawl --out data/crawl
Parts: groups of `part_mb` of files, read by any number of workers; then one job keeps each URL once
Cost:  one pass over the files, about 1,000 pages a second and core; then 100 to 200 bytes of memory a URL kept
"""

import json
import sys
from pathlib import Path

from dinov2.curation.crawl.candidates import CrawlParams, file_groups, read_part
from dinov2.curation.crawl.domains import REFUSED_DOMAINS, refused_domains, write_domains
from dinov2.curation.crawl.unique import keep_once
from dinov2.params import InputError
from dinov2.records import Summary, write_json
from tasks.fan_out import Phase
from tasks.stage import main

VERSION = 3


def count_parts(params: CrawlParams, *, crawl: Path, work: Path) -> int:
    """Number of groups of crawl files."""
    return len(_groups(params, crawl, work))


def read_group(part: int, params: CrawlParams, *, crawl: Path, work: Path) -> None:
    """Read one group of crawl files."""
    read_part(_groups(params, crawl, work)[part], params, crawl=crawl, out=_folder(work, part))


PHASES = (Phase("pages", count_parts, read_group),)


def run(params: CrawlParams, *, crawl: Path, out: Path, work: Path) -> Summary:
    """Write the records of all images that the parts found."""
    parts = [_folder(work, part) for part in range(count_parts(params, crawl=crawl, work=work))]
    counts = keep_once(parts, params, out=out, work=work)
    write_domains(out / REFUSED_DOMAINS, refused_domains(params.refused_domains, params.refused_domain_files))
    num_removed = sum(counts.dropped.values())
    if not counts.num_kept:
        raise InputError(
            f"the crawl {crawl} gives no image: {counts.metrics['pages']:.0f} pages, "
            f"{num_removed} references of <img> dropped; put pages with images there"
        )
    return Summary(
        num_in=counts.num_kept + num_removed,
        num_kept=counts.num_kept,
        dropped=counts.dropped,
        metrics=counts.metrics,
    )


def _groups(params: CrawlParams, crawl: Path, work: Path) -> list[list[str]]:
    """The files of each part; listed once, as a crawl can have many."""
    path = work / "listed" / "files.json"
    if not path.exists():
        write_json(path, file_groups(crawl, part_mb=params.part_mb))
    return json.loads(path.read_text())


def _folder(work: Path, part: int) -> Path:
    return work / "pages" / f"{part:06d}"


if __name__ == "__main__":
    sys.exit(main(run))
