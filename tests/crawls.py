"""Small crawls for tests: WARC files from answers, and the whole crawl stage over a folder."""

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.curation.crawl.candidates import CrawlParams, file_groups, read_part
from dinov2.curation.crawl.optout import OptOutParams
from dinov2.curation.crawl.unique import keep_once
from dinov2.records import IMAGE_RECORDS, REMOVED, read_table

OPT_OUT = OptOutParams(
    robots_txt=True, directives=["noai", "noimageai", "noindex", "noimageindex", "none"], tdm_reservation=True
)
PARAMS = CrawlParams(
    refused_domains=["bad.example"], refused_domain_files=[], schemes=["http", "https", "data"], max_page_mb=1.0,
    max_data_uri_kb=1.0, user_agent="Pipeline-Bot/0.1 (research crawler)", opt_out=OPT_OUT, part_mb=1,
)  # fmt: skip
HTML = "text/html; charset=utf-8"


class Answer(NamedTuple):
    """What a server answered, or with a `kind` other than response what else a WARC file holds."""

    url: str
    mime: str
    body: bytes
    status: str = "200 OK"
    headers: Sequence[tuple[str, str]] = ()
    kind: str = "response"
    about: Sequence[tuple[str, str]] = ()
    """Headers of the WARC record."""


class Crawled(NamedTuple):
    """What the crawl stage wrote."""

    records: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    metrics: dict[str, float]

    @property
    def urls(self) -> list[str]:
        """Of the images kept."""
        return [record["url"] for record in self.records]

    @property
    def reasons(self) -> list[str]:
        """Of the candidates removed."""
        return [row["reason"] for row in self.removed]


def write_warc(path: Path, answers: Sequence[Answer]) -> None:
    """A WARC of answers, one gzip member a record where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(_record(answer, is_gzip=path.suffix == ".gz") for answer in answers))


def _record(answer: Answer, *, is_gzip: bool) -> bytes:
    content, mime = answer.body, answer.mime
    if answer.kind == "response":
        headers = "".join(f"{name}: {value}\r\n" for name, value in [("Content-Type", mime), *answer.headers])
        content, mime = f"HTTP/1.1 {answer.status}\r\n{headers}\r\n".encode() + content, "application/http"
    about = [("WARC-Type", answer.kind), ("WARC-Target-URI", answer.url), ("Content-Type", mime), *answer.about]
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in about)
    data = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"
    return gzip.compress(data, mtime=0) if is_gzip else data


def crawl(folder: Path, params: CrawlParams = PARAMS) -> Crawled:
    """Crawl a folder, in parts; the counts must add up."""
    with tempfile.TemporaryDirectory() as work:
        parts = []
        for number, files in enumerate(file_groups(folder, part_mb=params.part_mb)):
            parts.append(Path(work, str(number)))
            read_part(files, params, crawl=folder, out=parts[-1])
        out = Path(work, "out")
        counts = keep_once(parts, params, out=out, work=Path(work))
        found = read_table(out / "records.parquet", IMAGE_RECORDS), read_table(out / "removed.parquet", REMOVED)
    assert (counts.num_kept, sum(counts.dropped.values())) == tuple(map(len, found))
    return Crawled([dict(row) for row in found[0]], [dict(row) for row in found[1]], counts.metrics)


def crawl_page(folder: Path, *pages: str, headers: Sequence[tuple[str, str]] = (), **params: Any) -> Crawled:
    """Crawl pages http://site.example/dir/page0.html, ..."""
    answers = [
        Answer(f"http://site.example/dir/page{number}.html", HTML, page.encode(), headers=headers)
        for number, page in enumerate(pages)
    ]
    write_warc(folder / "pages.warc.gz", answers)
    return crawl(folder, PARAMS.model_copy(update=params))
