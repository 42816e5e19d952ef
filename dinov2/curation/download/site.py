"""What the files of a site say of its images: robots.txt, and tdmrep.json where that is honoured.

Each is asked once a site, that is scheme, host and port, and round (again if thousands of other sites came between). A
site whose robots.txt can't be had now is left alone (RFC 9309 section 2.3.1.4); one that has none forbids nothing.
"""

import asyncio
import zlib
from collections import OrderedDict
from typing import NamedTuple

from dinov2.curation.crawl.optout import (
    MAX_TDMREP_BYTES,
    TDMREP_PATH,
    OptOutParams,
    TdmRule,
    parse_tdmrep,
    tdmrep_opt_out,
)
from dinov2.curation.crawl.robots import MAX_ROBOTS_BYTES, ROBOTS_PATH, Robots
from dinov2.curation.crawl.urls import is_refused_domain, site_of
from dinov2.curation.download.answer import REDIRECTS, NoImageError, PassingError
from dinov2.curation.download.client import Client

MAX_REDIRECTS = 5  # RFC 9309 section 2.3.1.2: then it counts as absent
MAX_SITES = 4096  # whose rules are remembered; robots.txt may be half a megabyte


class Rules(NamedTuple):
    """What the files of one site say."""

    robots: Robots
    tdm: list[TdmRule]


class Sites:
    """The rules of sites, asked for when the first image of one is."""

    def __init__(self, client: Client, opt_out: OptOutParams, refused_domains: frozenset[str]) -> None:
        self._client = client
        self._opt_out = opt_out
        self._refused_domains = refused_domains
        self._rules: OrderedDict[str, asyncio.Task[Rules]] = OrderedDict()

    async def check(self, url: str) -> None:
        """Raise NoImageError (`robots_txt`, `tdm_file`) if the site of the canonical `url` forbids it.

        Raises NoImageError with `refused_domain` if a refused domain has the rules: what they say is not known.
        Raises PassingError with `robots_unavailable`, or as a request for the image itself would.
        """
        rules = await self._of(url)
        if self._opt_out.robots_txt and not rules.robots.allows(url):
            raise NoImageError("robots_txt")
        rule = tdmrep_opt_out(rules.tdm, self._opt_out, url)
        if rule is not None:
            raise NoImageError(rule)

    async def _of(self, url: str) -> Rules:
        """The rules of the site of `url`; all who ask meanwhile share one request, and its failure."""
        site = site_of(url)
        if site not in self._rules:
            self._rules[site] = asyncio.create_task(self._read(site))
            if len(self._rules) > MAX_SITES:
                self._rules.popitem(last=False)
        self._rules.move_to_end(site)
        return await asyncio.shield(self._rules[site])

    async def _read(self, site: str) -> Rules:
        robots_txt, tdmrep = b"", b""
        try:
            if self._opt_out.robots_txt:
                robots_txt = await self._file(site + ROBOTS_PATH, MAX_ROBOTS_BYTES)
            if self._opt_out.tdm_reservation:
                tdmrep = await self._file(site + TDMREP_PATH, MAX_TDMREP_BYTES)
        except PassingError as error:
            if error.reason in ("server_error", "too_many_requests"):
                raise PassingError("robots_unavailable") from error
            raise
        robots = Robots(robots_txt, self._client.http.user_agent)
        self._client.host(site).slow_down(robots.crawl_delay_s())
        return Rules(robots, parse_tdmrep(tdmrep))

    async def _file(self, url: str, max_bytes: int) -> bytes:
        """A small file, or what its limit leaves of it; empty if there is none."""

        async def attempt() -> bytes | str:
            async with self._client.ask(url, accept="*/*") as answer:
                if answer.status in REDIRECTS:
                    return answer.location(url)
                if answer.status != 200:
                    return b""
                with await answer.body(max_bytes, is_wanted=lambda _: True, may_be_encoded=True) as body:
                    return _decoded(body.read(), answer.encoding, max_bytes)

        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = await self._client.retried(url, attempt)
            except NoImageError as error:
                if error.reason != "bad_redirect":
                    raise
                return b""  # it leads nowhere
            if isinstance(found, bytes):
                return found
            url = found
            if is_refused_domain(url, self._refused_domains):
                raise NoImageError("refused_domain")
        return b""


def _decoded(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """At most `max_bytes` of what a server encoded unasked; empty, as is any nonsense, where that can't be undone."""
    if not encoding:
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, max_bytes)  # gzip and deflate, by their heads
    except zlib.error:
        return b""
