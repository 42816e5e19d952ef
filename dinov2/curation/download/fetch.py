"""Images over HTTP(S): one part's hosts, each asked politely and as its files allow; what is known is not asked again.

A part asks only hosts that are its own (`host_part`), so the limits of a host hold whatever the number of workers. An
image that redirects to a host of another part is handed over to that part's next round; one that failed in a way that
may pass waits for the next round too. Not held to this: the robots.txt of one host that redirects to another host.
In memory: about 2 kB a host of the part, and what fetch_log.py, site.py and answer.py say.
"""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dinov2.curation.crawl.optout import OptOutParams, headers_opt_out
from dinov2.curation.crawl.urls import is_refused_domain
from dinov2.curation.download.answer import REDIRECTS, HttpParams, NoImageError, PassingError
from dinov2.curation.download.client import Client, host_of
from dinov2.curation.download.fetch_log import Failure, FetchLog, Moved
from dinov2.curation.download.politeness import PolitenessParams, Waits
from dinov2.curation.download.site import Sites
from dinov2.curation.sniff import sniff_mime
from dinov2.progress import EVERY_S

logger = logging.getLogger(__name__)

NUM_LOOKUP_THREADS = 64
IMAGE_TYPES = "image/avif,image/webp,image/png,image/jpeg,image/gif;q=0.9,*/*;q=0.1"


class Wanted(NamedTuple):
    """An image to fetch: where its record stands, what to ask for now, and the redirects that led there."""

    position: int
    url: str
    num_redirects: int


def host_part(host: str, num_parts: int) -> int:
    """The part that asks `host`, the same in every run."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], "big") % num_parts


class Limits(NamedTuple):
    """What fetching needs of the stage's params."""

    http: HttpParams
    politeness: PolitenessParams
    opt_out: OptOutParams
    refused_domains: frozenset[str]
    num_parts: int
    max_bytes: int
    max_pixels: int


def fetch_all(
    wanted: list[Wanted], limits: Limits, log: FetchLog, waits: Waits, *, part: int, folder: Path
) -> None:
    """Fetch every one of `wanted`, all of hosts of `part`, that `log` has no outcome of, and note its outcome.

    Reasons that may pass: `server_error`, `too_many_requests`, `timed_out`, `unreachable`, `broken_response`,
    `robots_unavailable`, `host_given_up`. Others: `bad_status`, `not_an_image`, `malformed_image`, `too_large`,
    `too_many_pixels`, `too_slow`, `too_many_redirects`, `bad_redirect`, `refused_domain` (of a redirect of the image or
    of its site's rules), `private_address`, `content_encoding`, `robots_txt`, `tdm_file`, and those of
    `headers_opt_out`. Large bodies lie in `folder` while they come.
    """
    missing = [image for image in wanted if image.position not in log.outcomes]
    if missing:
        logger.info("download: %d images to fetch over HTTP", len(missing))
        client = Client(limits.http, limits.politeness, waits, folder)
        asyncio.run(_Round(limits, log, client, part, len(missing)).run(missing))


class _Round:
    """One round over the hosts of one part."""

    def __init__(self, limits: Limits, log: FetchLog, client: Client, part: int, num_images: int) -> None:
        self._limits = limits
        self._log = log
        self._part = part
        self._client = client
        self._sites = Sites(self._client, limits.opt_out, limits.refused_domains)
        self._num_images = num_images
        self._num_done = 0
        self._started = self._said = time.monotonic()

    async def run(self, images: list[Wanted]) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NUM_LOOKUP_THREADS, "look-up"))
        of_host: defaultdict[str, list[Wanted]] = defaultdict(list)
        for image in images:
            of_host[host_of(image.url)].append(image)
        visits = iter(sorted(of_host.values(), key=self._turn))
        num_visitors = min(self._limits.politeness.max_hosts, len(of_host))
        await asyncio.gather(*(self._visit(visits) for _ in range(num_visitors)))

    def _turn(self, images: list[Wanted]) -> tuple[float, int]:
        """Order of the visits: hosts that asked to be left alone come last, and longer ones begin first."""
        return self._client.host(images[0].url).left_for_s, -len(images)

    async def _visit(self, visits: Iterator[list[Wanted]]) -> None:
        for images in visits:
            while 0 < (wait_s := self._client.host(images[0].url).left_for_s) <= self._limits.politeness.max_wait_s:
                logger.info("download: %s is left alone for %.0f s, as it asked", host_of(images[0].url), wait_s)
                await asyncio.sleep(wait_s)
            queue = iter(images)
            num_workers = min(self._limits.politeness.max_per_host, len(images))
            async with self._client.visit(images[0].url):
                await asyncio.gather(*(self._work(queue) for _ in range(num_workers)))

    async def _work(self, queue: Iterator[Wanted]) -> None:
        for image in queue:
            await self._fetch(image)
            self._num_done += 1
            now = time.monotonic()
            if now - self._said >= EVERY_S or self._num_done == self._num_images:
                self._said = now
                rate = self._num_done / max(now - self._started, 1e-3)
                logger.info("download: %d of %d fetched or failed, %.0f/s", self._num_done, self._num_images, rate)

    async def _fetch(self, image: Wanted) -> None:
        """Note what becomes of one image."""
        try:
            await self._follow(image)
        except NoImageError as error:
            self._log.add(image.position, Failure(error.reason, is_passing=False))
        except PassingError as error:
            self._log.add(image.position, Failure(error.reason, is_passing=True))

    async def _follow(self, image: Wanted) -> None:
        """Ask for an image until its body, or the host of another part that it leads to, is noted."""
        url, num_redirects = image.url, image.num_redirects
        while (location := await self._ask(url, image.position)) is not None:
            url, num_redirects = location, num_redirects + 1
            if num_redirects > self._limits.http.max_redirects:
                raise NoImageError("too_many_redirects")
            if is_refused_domain(url, self._limits.refused_domains):
                raise NoImageError("refused_domain")
            if host_part(host_of(url), self._limits.num_parts) != self._part:
                self._log.add(image.position, Moved(url, num_redirects))
                return

    async def _ask(self, url: str, position: int) -> str | None:
        """Ask, again where that may help, until the body is noted or it is known where the answer leads."""
        host = self._client.host(url)
        if host.is_given_up:
            raise PassingError("host_given_up")
        try:
            await self._sites.check(url)
            location = await self._client.retried(url, lambda: self._ask_once(url, position))
        except PassingError:
            host.note(failed=True)
            raise
        except NoImageError:
            host.note(failed=False)
            raise
        host.note(failed=False)
        return location

    async def _ask_once(self, url: str, position: int) -> str | None:
        limits = self._limits
        async with self._client.ask(url, accept=IMAGE_TYPES) as answer:
            if answer.status in REDIRECTS:
                return answer.location(url)
            if answer.status != 200:
                raise NoImageError("bad_status")
            rule = headers_opt_out(answer.headers, limits.opt_out, limits.http.user_agent)
            if rule is not None:
                raise NoImageError(rule)
            body = await answer.body(limits.max_bytes, is_wanted=lambda head: sniff_mime(head) is not None)
        with body:
            self._log.add_body(position, body.read(), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        return None
