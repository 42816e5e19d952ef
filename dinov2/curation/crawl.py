"""Pages to image records: every `<img>` of WARC files and HTML folders, as one absolute URL, each kept once.

Paper section 3, "data sources": image URLs are taken from the `<img>` tags of crawled pages; URLs that are unsafe or
of restricted domains are dropped. An `<img>` is one image in several sizes, so it gives one URL: the largest candidate
of its `srcset` that is not refused, or else its `src`; the others are counted too. Where the same crawl holds the
answer to that URL, the record says in which file and at which offset.
"""

import codecs
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from selectolax.lexbor import LexborHTMLParser

from dinov2.curation.urls import (
    SHOWN_CHARS,
    UrlRefusedError,
    canonical,
    file_url,
    is_refused_domain,
    resolve,
    srcset_urls,
    urljoin_checked,
)
from dinov2.curation.warc import DamagedWarcError, WarcEntry, read_entries
from dinov2.params import InputError, Params
from dinov2.progress import logged

logger = logging.getLogger(__name__)

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
WARC_SUFFIXES = (".warc", ".warc.gz")
# Python text codecs that are no encodings of web pages, some of them quadratic.
_NOT_OF_THE_WEB = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf-7"}
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


class CrawlParams(Params):
    """What is taken from pages."""

    refused_domains: list[str]
    """Images of these domains, and of all below them, are dropped."""
    max_page_mb: Annotated[float, Field(gt=0)]
    """Megabytes of HTML; larger pages are left out and counted."""


class CrawlResult(NamedTuple):
    """Rows of IMAGE_RECORDS and REMOVED (one row a URL of an `<img>`, together), and counts."""

    records: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    metrics: dict[str, float]


class Image(NamedTuple):
    """What an `<img>` says: references as written, the largest first (none without src and srcset), and its text."""

    references: list[str]
    alt: str


def crawl_images(params: CrawlParams, crawl: Path) -> CrawlResult:
    """Records of all images that the pages below the folder `crawl` show, in the order of files and pages.

    A file that is cut short or corrupt is named, counted in `damaged_files` and read as far as it goes. Drop reasons:
    `no_url`, `refused_scheme`, `refused_domain`, `malformed_url`, `smaller_candidate` (another of the same `<img>` was
    taken), `repeated`.
    Raises InputError if the folder is absent, holds no WARC or HTML, or gives no image.
    """
    collector = _Collector(params)
    files = list_files(crawl)
    for path in logged(files, total=len(files), what="crawl: files read", logger=logger):
        if path.name.lower().endswith(WARC_SUFFIXES):
            collector.add_warc(path, crawl)
        else:
            collector.add_html_file(path, crawl)
    result = collector.result()
    if not result.records:
        raise InputError(
            f"the crawl {crawl} gives no image: {result.metrics['pages']:.0f} pages in {len(files)} files, "
            f"{len(result.removed)} <img> dropped; put pages with images there"
        )
    return result


def list_files(crawl: Path) -> list[Path]:
    """WARC and HTML files below `crawl`, sorted by path. Raises InputError if there are none."""
    if not crawl.is_dir():
        what = "is not a folder" if crawl.exists() else "does not exist"
        raise InputError(f"the crawl {crawl} {what}; set inputs.crawl to a folder of WARC or HTML files")
    suffixes = WARC_SUFFIXES + HTML_SUFFIXES
    files = [path for path in crawl.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file()]
    if not files:
        names = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise InputError(f"the crawl {crawl} holds no file named {names}; put pages there")
    return sorted(files, key=lambda path: path.relative_to(crawl).as_posix())


def decode_html(data: bytes, charset: str | None) -> str:
    """Text of a page: by byte order mark, the server's charset, `<meta>`, UTF-8, or else windows-1252 (as browsers)."""
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig", errors="replace")
    meta = _META_CHARSET.search(data[:2048])
    for name in (charset, meta.group(1).decode("ascii", "replace") if meta else None):
        if name:
            try:
                encoding = codecs.lookup(name).name.replace("-", "_")
                if encoding not in _NOT_OF_THE_WEB:
                    return data.decode("cp1252" if encoding in ("iso8859_1", "ascii") else encoding, errors="replace")
            except (LookupError, UnicodeError):
                continue
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def page_images(html: str, page_url: str) -> tuple[str, list[Image]]:
    """The base URL that references on a page are relative to, and its `<img>` elements in document order."""
    tree = LexborHTMLParser(html)
    base = page_url
    for node in tree.css("base[href]")[:1]:
        try:
            base = canonical(urljoin_checked(page_url, (node.attributes.get("href") or "").strip()))
        except UrlRefusedError:
            base = page_url
    images = []
    for node in tree.css("img"):
        attributes = node.attributes
        source = (attributes.get("src") or "").strip()
        references = [*srcset_urls(attributes.get("srcset") or ""), *([source] if source else [])]
        images.append(Image(list(dict.fromkeys(references)), " ".join((attributes.get("alt") or "").split())))
    return base, images


class _Collector:
    """Images of the pages seen so far, and where the crawl holds their answers."""

    def __init__(self, params: CrawlParams) -> None:
        self._domains = frozenset(domain.lower().strip(".") for domain in params.refused_domains)
        self._max_page_bytes = int(params.max_page_mb * 1e6)
        self._records: dict[str, dict[str, Any]] = {}
        self._removed: list[dict[str, Any]] = []
        self._answers: dict[str, tuple[str, int]] = {}
        self._refusals: dict[str, tuple[str, int]] = {}
        self._counts: Counter[str] = Counter(pages=0, damaged_files=0, oversized_pages=0)

    def add_warc(self, path: Path, crawl: Path) -> None:
        name = path.relative_to(crawl).as_posix()
        try:
            for entry in read_entries(path, max_html_bytes=self._max_page_bytes):
                self._add_entry(entry, name)
        except DamagedWarcError as error:
            logger.warning("%s is damaged, read as far as it goes: %s", path, error)
            self._counts["damaged_files"] += 1

    def _add_entry(self, entry: WarcEntry, name: str) -> None:
        try:
            url = canonical(entry.url)
        except UrlRefusedError:
            self._counts["responses_without_url"] += 1
            return
        known = self._answers if entry.status == 200 else self._refusals
        known.setdefault(url, (name, entry.offset))
        if entry.html is not None:
            self._add_page(entry.html, entry.charset, url)

    def add_html_file(self, path: Path, crawl: Path) -> None:
        try:
            with path.open("rb") as stream:
                data = stream.read(self._max_page_bytes + 1)
        except OSError as error:
            logger.warning("%s can't be read, left out: %s", path, error.strerror)
            self._counts["damaged_files"] += 1
            return
        self._add_page(data, None, file_url(path, crawl))

    def _add_page(self, data: bytes, charset: str | None, page_url: str) -> None:
        if len(data) > self._max_page_bytes:
            logger.warning("page %s is larger than max_page_mb, left out", page_url)
            self._counts["oversized_pages"] += 1
            return
        self._counts["pages"] += 1
        base, images = page_images(decode_html(data, charset), page_url)
        for image in images:
            self._add_image(image, base, page_url)

    def _add_image(self, image: Image, base: str, page_url: str) -> None:
        if not image.references:
            self._remove(None, "no_url")
        is_taken = False
        for reference in image.references:
            try:
                url = resolve(reference, base)
            except UrlRefusedError as error:
                self._remove(reference[:SHOWN_CHARS], error.reason)
                continue
            if is_refused_domain(url, self._domains):
                self._remove(url, "refused_domain")
                continue
            if is_taken or url in self._records:
                self._remove(url, "smaller_candidate" if is_taken else "repeated")
            else:
                record = {"url": url, "page_url": page_url, "alt": image.alt, "warc": None, "warc_offset": None}
                self._records[url] = record
            is_taken = True

    def _remove(self, url: str | None, reason: str) -> None:
        self._removed.append({"id": None, "url": url, "reason": reason, "witness_id": None, "cosine": None})

    def result(self) -> CrawlResult:
        for url, record in self._records.items():
            nowhere = (None, None)
            record["warc"], record["warc_offset"] = self._answers.get(url, self._refusals.get(url, nowhere))
        in_warc = sum(record["warc"] is not None for record in self._records.values())
        metrics = {**self._counts, "images_in_warc": in_warc}
        return CrawlResult(
            list(self._records.values()), self._removed, {key: float(value) for key, value in sorted(metrics.items())}
        )
