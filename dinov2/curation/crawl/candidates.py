"""Crawl files to candidates: every reference of every `<img>`, with the reason that already rules it out.

The first half of the crawl, made in parts of a few files each; `unique.py` then gathers the parts. Here is decided what
a page alone can tell: its URLs, refused schemes and domains, and the opt-outs that it and its server declare. What the
crawl says elsewhere is noted for the gathering: the answers that it holds, and the rules of sites (robots.txt,
tdmrep.json).
"""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from dinov2.curation.crawl.domains import DomainFile, refused_domains
from dinov2.curation.crawl.optout import TDMREP_PATH, OptOutParams, headers_opt_out, meta_opt_out
from dinov2.curation.crawl.pages import Image, Page, decode_html, read_page
from dinov2.curation.crawl.robots import ROBOTS_PATH
from dinov2.curation.crawl.sitemaps import DamagedSitemapError, SitemapParser, read_list, read_sitemap_file
from dinov2.curation.crawl.urls import (
    SHOWN_CHARS,
    UrlRefusedError,
    canonical,
    canonical_data_uri,
    file_url,
    is_refused_domain,
    path_and_query,
    resolve,
    shown,
)
from dinov2.curation.crawl.warc import XML_TYPES, DamagedWarcError, WarcEntry, read_entries, read_metadata
from dinov2.curation.crawl.wat import read_wat_record
from dinov2.files import files_below, is_utf8
from dinov2.params import InputError, Params
from dinov2.progress import logged
from dinov2.tables import TableWriter

logger = logging.getLogger(__name__)

WAT_SUFFIXES = (".wat", ".wat.gz")
WARC_SUFFIXES = (".warc", ".warc.gz")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
SITEMAP_SUFFIXES = (".xml", ".xml.gz")
LIST_SUFFIXES = ("urls.txt", "urls.txt.gz")
MAX_REFERENCES = 100  # of one <img>, the largest; the others are counted as too_many_candidates

CANDIDATES = pa.schema(
    [
        ("image", pa.int64()),  # number of the <img> within the part
        ("url", pa.string()),  # canonical; as written, and shortened, where it is no URL
        ("page_url", pa.string()),
        ("alt", pa.string()),
        ("reason", pa.string()),  # why it is dropped; null: nothing on the page speaks against it
    ]
)
ANSWERS = pa.schema(
    [
        ("url", pa.string()),
        ("warc", pa.string()),  # null: the crawl does not hold it whole, only what its headers say
        ("offset", pa.int64()),
        ("is_body", pa.bool_()),  # false: a lasting refusal
        ("opt_out", pa.string()),  # by the answer's headers; null for most
    ]
)
SITES = pa.schema([("url", pa.string()), ("status", pa.int32()), ("body", pa.binary())])  # robots.txt, tdmrep.json


class CrawlParams(Params):
    """What is taken from pages."""

    refused_domains: list[str]
    """Images of these domains, and of all below them, are dropped."""
    refused_domain_files: list[DomainFile]
    """Files with further refused domains."""
    schemes: list[Literal["http", "https", "data"]]
    """Images of these are taken; those of `file` only from pages that are files themselves."""
    max_page_mb: Annotated[float, Field(gt=0)]
    """Megabytes of a page (of a WAT record); larger ones are left out and counted."""
    max_data_uri_kb: Annotated[float, Field(gt=0)]
    """Kilobytes of an image that is written into the page itself; larger ones are dropped."""
    user_agent: Annotated[str, Field(min_length=1)]
    """By this name robots.txt and robots directives may address us; the same as in download."""
    opt_out: OptOutParams
    """Which opt-outs are honoured."""
    part_mb: Annotated[int, Field(gt=0)]
    """Megabytes of crawl files that one worker reads in one go."""


def file_groups(crawl: Path, *, part_mb: int) -> list[list[str]]:
    """The files of a crawl, by their paths in it, sorted, in groups of `part_mb` megabytes or a single larger file.

    Raises InputError as `list_files`.
    """
    groups: list[list[str]] = []
    room = 0.0
    for path in list_files(crawl):
        name, size = path.relative_to(crawl).as_posix(), path.stat().st_size if path.exists() else 0
        if name.lower().endswith(WARC_SUFFIXES) and not is_utf8(name):
            raise InputError(f"{str(path)!r} is not named in UTF-8, which records can't hold; rename it")
        if not groups or size > room:
            groups.append([])
            room = part_mb * 1e6
        groups[-1].append(name)
        room -= size
    return groups


def list_files(crawl: Path) -> list[Path]:
    """Files below `crawl` that are read, sorted by path. Raises InputError if there are none."""
    if not crawl.is_dir():
        what = "is not a folder" if crawl.exists() else "does not exist"
        raise InputError(f"the crawl {crawl} {what}; set inputs.crawl to a folder of WARC or HTML files")
    suffixes = WARC_SUFFIXES + WAT_SUFFIXES + HTML_SUFFIXES + SITEMAP_SUFFIXES + LIST_SUFFIXES
    files = sorted(name for name in files_below(crawl) if name.lower().endswith(suffixes))
    if not files:
        names = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise InputError(f"the crawl {crawl} holds no file named {names}; put pages there")
    return [crawl / name for name in files]


def read_part(files: list[str], params: CrawlParams, *, crawl: Path, out: Path) -> None:
    """Write what `files` of the crawl say to the folder `out`: candidates, answers, sites and counts.

    A file that is cut short or corrupt is named, counted in `damaged_files` and read as far as it goes.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _Part(params, crawl, partial) as part:
        for name in logged(files, total=len(files), what="crawl: files read", logger=logger):
            part.add_file(name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


class _Part:
    """The tables of one part, while its files are read."""

    def __init__(self, params: CrawlParams, crawl: Path, folder: Path) -> None:
        self._params = params
        self._crawl = crawl
        self._folder = folder
        self._domains = refused_domains(params.refused_domains, params.refused_domain_files)
        self._max_page_bytes = int(params.max_page_mb * 1e6)
        self._num_images = 0
        self._counts: Counter[str] = Counter()
        self._candidates = TableWriter(folder / "candidates.parquet", CANDIDATES)
        self._answers = TableWriter(folder / "answers.parquet", ANSWERS)
        self._sites = TableWriter(folder / "sites.parquet", SITES)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        for table in (self._candidates, self._answers, self._sites):
            table.close()
        (self._folder / "counts.json").write_text(json.dumps(self._counts))

    def add_file(self, name: str) -> None:
        """Read one file of the crawl."""
        path, kind = self._crawl / name, name.lower()
        try:
            if kind.endswith(WARC_SUFFIXES):
                for entry in read_entries(path, max_page_bytes=self._max_page_bytes):
                    self._add_entry(entry, name)
            elif kind.endswith(WAT_SUFFIXES):
                for data in read_metadata(path, max_bytes=self._max_page_bytes):
                    self._add_metadata(data)
            elif kind.endswith(SITEMAP_SUFFIXES):
                data, is_damaged = read_sitemap_file(path)
                read = self._add_sitemap(data, file_url(path, self._crawl))
                self._counts["damaged_files"] += is_damaged or bool(read.damage)
            elif kind.endswith(LIST_SUFFIXES):
                self._add_list(path)
            else:
                with path.open("rb") as stream:
                    self._add_html(stream.read(self._max_page_bytes + 1), None, file_url(path, self._crawl), None)
        except (DamagedWarcError, DamagedSitemapError, OSError) as error:
            logger.warning("%s is damaged, read as far as it goes: %s", path, error)
            self._counts["damaged_files"] += 1

    def _add_entry(self, entry: WarcEntry, name: str) -> None:
        try:
            url = canonical(entry.url)
        except UrlRefusedError:
            self._counts["responses_without_url"] += 1
            return
        rule = headers_opt_out(entry.headers, self._params.opt_out, self._params.user_agent)
        if entry.settles:
            row = {"warc": name, "offset": entry.offset, "is_body": entry.status == 200, "opt_out": rule}
            self._answers.add({"url": url, **row})
        elif entry.status == 200 and rule:  # the server must be asked again, but what it said of the image holds
            self._answers.add({"url": url, "warc": None, "offset": None, "is_body": False, "opt_out": rule})
        self._counts["cut_answers"] += entry.status == 200 and entry.is_cut
        self._counts["undecoded_answers"] += entry.status == 200 and entry.is_encoded
        if path_and_query(url) in (ROBOTS_PATH, TDMREP_PATH):
            self._sites.add({"url": url, "status": entry.status, "body": entry.body})
        elif entry.body is not None and entry.mime in XML_TYPES:
            read = self._add_sitemap(entry.body, url)
            self._counts["damaged_sitemaps"] += read.is_sitemap and bool(read.damage)
        elif entry.body is not None:
            self._add_html(entry.body, entry.charset, url, rule)

    def _add_metadata(self, data: bytes) -> None:
        if len(data) > self._max_page_bytes:
            self._counts["oversized_pages"] += 1
            return
        try:
            found = read_wat_record(data)
            url = canonical(found.url) if found else ""
        except ValueError:
            self._counts["malformed_wat_records"] += 1
            return
        if found:
            rule = headers_opt_out(found.headers, self._params.opt_out, self._params.user_agent)
            self._add_page(found.page, url, rule)

    def _add_html(self, data: bytes, charset: str | None, page_url: str, rule: str | None) -> None:
        if len(data) > self._max_page_bytes:
            logger.warning("page %s is larger than max_page_mb, left out", page_url)
            self._counts["oversized_pages"] += 1
            return
        self._add_page(read_page(decode_html(data, charset)), page_url, rule)

    def _add_page(self, page: Page, page_url: str, rule: str | None) -> None:
        self._counts["pages"] += 1
        rule = rule or meta_opt_out(page.metas, self._params.opt_out, self._params.user_agent)
        self._counts["opted_out_pages"] += rule is not None
        base = page_url
        if page.base is not None:
            try:
                base = resolve(page.base, page_url)
            except UrlRefusedError:
                base = page_url
        for image in page.images:
            self._add_image(image, base, page_url, f"page_{rule}" if rule else None)

    def _add_sitemap(self, data: bytes, url: str) -> SitemapParser:
        """Add the images of a sitemap, as far as it can be read; XML of another kind, such as a feed, gives none."""
        parser = SitemapParser()
        parser.read(data)
        if parser.damage:
            logger.warning("XML of %s is damaged, read as far as it goes: %s", url, parser.damage)
        found = parser.sitemap
        self._counts["sitemaps"] += parser.is_sitemap
        self._counts["pages_in_sitemaps"] += found.num_pages
        self._counts["sitemaps_in_indexes"] += found.num_sitemaps
        for page, image in found.images:
            try:
                page_url = resolve(page, url)
            except UrlRefusedError:
                page_url = url
            self._add_image(image, url, page_url, None)
        return parser

    def _add_list(self, path: Path) -> None:
        url = file_url(path, self._crawl)
        self._counts["lists"] += 1
        for reference in read_list(path):
            self._add_image(Image([reference], ""), url, url, None)

    def _add_image(self, image: Image, base: str, page_url: str, rule: str | None) -> None:
        about = {"image": self._num_images, "page_url": page_url, "alt": image.alt}
        self._num_images += 1
        if not image.references:
            self._candidates.add({**about, "url": None, "reason": "no_url"})
        for reference in image.references[:MAX_REFERENCES]:
            url, reason = self._url_of(reference, base)
            if reason is None and rule:
                url, reason = shown(url), rule
            elif reason is None and is_refused_domain(url, self._domains):
                reason = "refused_domain"
            self._candidates.add({**about, "url": url, "reason": rule or reason})
        for reference in image.references[MAX_REFERENCES:]:
            self._candidates.add({**about, "url": reference[:SHOWN_CHARS], "reason": "too_many_candidates"})

    def _url_of(self, reference: str, base: str) -> tuple[str, str | None]:
        """The canonical URL of a reference; or as much of it as is listed, and the reason why it has none."""
        is_data = reference[:5].lower() == "data:"
        try:
            if is_data and "data" in self._params.schemes:
                if len(reference) > self._params.max_data_uri_kb * 1e3:
                    return reference[:SHOWN_CHARS], "too_large"
                return canonical_data_uri(reference), None
            url = resolve(reference, base)
        except UrlRefusedError as error:
            return reference[:SHOWN_CHARS], error.reason
        is_allowed = url.startswith("file:") or url.partition(":")[0] in self._params.schemes
        return url, None if is_allowed else "refused_scheme"
