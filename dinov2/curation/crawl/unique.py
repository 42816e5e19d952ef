"""Candidates to image records: of every `<img>` the best URL that nothing speaks against, each URL kept once.

The second half of the crawl: it reads the parts that `candidates.py` made, in order, as if they were one. Opt-outs that
only the whole crawl tells are honoured here: robots.txt and tdmrep.json of a page's and an image's site, and the
headers of the image's own answer. Memory grows with the number of URLs kept (100 to 200 bytes each) and with what
sites' rules weigh; everything else is streamed.
"""

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from dinov2.curation.crawl.candidates import ANSWERS, CANDIDATES, SITES, CrawlParams
from dinov2.curation.crawl.optout import TDMREP_PATH, TdmRule, parse_tdmrep, tdmrep_opt_out
from dinov2.curation.crawl.robots import ROBOTS_PATH, Robots
from dinov2.curation.crawl.urls import shown, site_of
from dinov2.records import IMAGE_RECORDS, REMOVED
from dinov2.tables import TableWriter, iter_rows

UNREACHABLE = b"User-agent: *\nDisallow: /\n"  # RFC 9309 section 2.3.1.4: a server that fails allows nothing


class CrawlCounts(NamedTuple):
    """How many URLs were kept and dropped, by reason, and what else was counted."""

    num_kept: int
    dropped: dict[str, int]
    metrics: dict[str, float]


def keep_once(parts: list[Path], params: CrawlParams, *, out: Path, work: Path) -> CrawlCounts:
    """Write `records.parquet` and `removed.parquet` of the parts' candidates to the folder `out`.

    Drop reasons, beside those of the parts: `robots_txt`, `page_robots_txt`, `tdm_file`, `page_tdm_file`, those of
    headers, `smaller_candidate` (another of the same `<img>` was taken), `repeated`.
    """
    out.mkdir(parents=True, exist_ok=True)
    rules = _Rules(parts, params)
    kept: dict[bytes, tuple[str, int] | None] = {}
    dropped: Counter[str] = Counter()
    removed = TableWriter(out / "removed.parquet", REMOVED)
    chosen = TableWriter(work / "chosen.parquet", IMAGE_RECORDS)
    for candidates in _images(parts):
        is_taken = False
        for row in candidates:
            url, reason = row["url"], row["reason"] or rules.against(row["url"], row["page_url"])
            if reason is None:
                key = _digest(url)
                if is_taken or key in kept:
                    reason = "smaller_candidate" if is_taken else "repeated"
                else:
                    kept[key] = None
                    chosen.add({"url": url, "page_url": row["page_url"], "alt": row["alt"]})
                is_taken = True
            if reason is not None:
                dropped[reason] += 1
                removed.add({"url": shown(url) if row["reason"] is None else url, "reason": reason})
    chosen.close()
    removed.close()
    _find_answers(parts, kept)
    records = TableWriter(out / "records.parquet", IMAGE_RECORDS)
    num_in_warc = 0
    for row in iter_rows(work / "chosen.parquet", IMAGE_RECORDS):
        row["warc"], row["warc_offset"] = kept[_digest(row["url"])] or (None, None)
        num_in_warc += row["warc"] is not None
        records.add(row)
    records.close()
    metrics = {**_counts(parts), "images_in_warc": float(num_in_warc)}
    return CrawlCounts(records.num_rows, dict(sorted(dropped.items())), dict(sorted(metrics.items())))


class _Rules:
    """What sites and answers anywhere in the crawl say against pages and images."""

    def __init__(self, parts: Iterable[Path], params: CrawlParams) -> None:
        self._params = params
        self._files: defaultdict[str, set[bytes]] = defaultdict(set)
        self._opt_outs: dict[bytes, str] = {}
        for part in parts:
            for row in iter_rows(part / "sites.parquet", SITES):
                is_robots = row["url"].endswith(ROBOTS_PATH)
                body = UNREACHABLE if is_robots and row["status"] >= 500 else row["body"]
                if body:
                    self._files[row["url"]].add(zlib.compress(body))
            for row in iter_rows(part / "answers.parquet", ANSWERS):
                if row["opt_out"]:
                    self._opt_outs.setdefault(_digest(row["url"]), row["opt_out"])
        self._robots = lru_cache(maxsize=256)(self._read_robots)
        self._tdmrep = lru_cache(maxsize=256)(self._read_tdmrep)
        self._of_page = lru_cache(maxsize=16)(self._of_site)

    def against(self, url: str, page_url: str) -> str | None:
        """The reason why `url`, shown on `page_url`, must not be taken; None if there is none."""
        if rule := self._of_page(page_url):
            return f"page_{rule}"
        if self._opt_outs and (rule := self._opt_outs.get(_digest(url))):
            return rule
        return self._of_site(url)

    def _of_site(self, url: str) -> str | None:
        if not self._files or not url.startswith("http"):
            return None
        site = site_of(url)
        if self._params.opt_out.robots_txt and not all(robots.allows(url) for robots in self._robots(site)):
            return "robots_txt"
        return tdmrep_opt_out(self._tdmrep(site), self._params.opt_out, url)

    def _read_robots(self, site: str) -> list[Robots]:
        """All that were captured: what one of them forbids is forbidden."""
        return [Robots(data, self._params.user_agent) for data in self._bodies(site + ROBOTS_PATH)]

    def _read_tdmrep(self, site: str) -> list[TdmRule]:
        return [rule for data in self._bodies(site + TDMREP_PATH) for rule in parse_tdmrep(data)]

    def _bodies(self, url: str) -> list[bytes]:
        return [zlib.decompress(body) for body in self._files.get(url, ())]


def _images(parts: Iterable[Path]) -> Iterator[Iterator[dict[str, Any]]]:
    """The candidates of each `<img>`, in order."""
    for part in parts:
        for _, candidates in groupby(iter_rows(part / "candidates.parquet", CANDIDATES), key=itemgetter("image")):
            yield candidates


def _find_answers(parts: Iterable[Path], kept: dict[bytes, tuple[str, int] | None]) -> None:
    """Note for each URL kept where its first answer with a body stands, or else its first lasting refusal."""
    refused: dict[bytes, tuple[str, int]] = {}
    for part in parts:
        for row in iter_rows(part / "answers.parquet", ANSWERS):
            key = _digest(row["url"])
            if row["warc"] is not None and key in kept and kept[key] is None:
                place = (intern(row["warc"]), row["offset"])
                if row["is_body"]:
                    kept[key] = place
                else:
                    refused.setdefault(key, place)
    for key, place in refused.items():
        kept[key] = kept[key] or place


def _counts(parts: Iterable[Path]) -> dict[str, float]:
    counts: Counter[str] = Counter(pages=0, damaged_files=0, oversized_pages=0)
    for part in parts:
        counts.update(json.loads((part / "counts.json").read_text()))
    return {name: float(count) for name, count in counts.items()}


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=16).digest()
