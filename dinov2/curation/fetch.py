"""Images over HTTP(S), politely and within limits; what was fetched is never fetched again.

httpcore, the engine below httpx, is used directly: only there can the address that is really connected to be checked,
after every redirect and whatever the name server answers the second time.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpcore

from dinov2.curation.download import DownloadParams, NoImageError, sniff_mime
from dinov2.curation.urls import UrlRefusedError, canonical, urljoin_checked
from dinov2.progress import EVERY_S

logger = logging.getLogger(__name__)

REDIRECTS = (301, 302, 303, 307, 308)
PASSING = ("timed_out", "unreachable", "broken_response", "server_error")  # tried again by the next run
SNIFF_BYTES = 16
HOST_GIVE_UP = 3  # connections to one host that fail in a row before the rest of its images is not tried


class FetchLog:
    """Outcomes of fetches, kept in a folder: bodies as files, and a log from which a killed run goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "outcomes.jsonl"
        self._reasons: dict[str, str | None] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        written = self._path.read_bytes()
        for line in written.splitlines():
            with contextlib.suppress(ValueError):  # a run was killed within that line
                url, reason = json.loads(line)
                self._reasons[url] = reason
        if written and not written.endswith(b"\n"):
            self._append("\n")
        self._reasons = {url: reason for url, reason in self._reasons.items() if reason not in PASSING}

    def __contains__(self, url: str) -> bool:
        return url in self._reasons

    def add(self, url: str, outcome: bytes | str) -> None:
        """Keep a body, or the reason why there is none."""
        if isinstance(outcome, bytes):
            path = self._body(url)
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(outcome)
            temporary.replace(path)
        self._reasons[url] = outcome if isinstance(outcome, str) else None
        self._append(json.dumps([url, self._reasons[url]]) + "\n")

    def read(self, url: str) -> bytes:
        """The body of a fetched URL; raises NoImageError with the reason if there is none."""
        reason = self._reasons[url]
        if reason is not None:
            raise NoImageError(reason)
        return self._body(url).read_bytes()

    def _body(self, url: str) -> Path:
        name = hashlib.sha256(url.encode()).hexdigest()
        return self._folder / name[:2] / name

    def _append(self, text: str) -> None:
        with self._path.open("a") as stream:
            stream.write(text)


def fetch_all(urls: Iterable[str], params: DownloadParams, log: FetchLog) -> None:
    """Fetch every one of the canonical `urls` that `log` has no outcome of, and add its outcome.

    Reasons: `bad_status`, `server_error` (5xx and 429), `not_an_image`, `too_large`, `timed_out`, `too_many_redirects`,
    `bad_redirect`, `unreachable`, `private_address`, `broken_response`.
    """
    missing = [url for url in dict.fromkeys(urls) if url not in log]
    if missing:
        logger.info("download: %d images to fetch over HTTP", len(missing))
        asyncio.run(_Fetcher(params, log, len(missing)).run(missing))


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connections to vetted addresses only; a host whose look-up fails is not looked up again."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._plain = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())
        self._lookups: dict[str, asyncio.Task[list[str]]] = {}
        self._num_failed: Counter[str] = Counter()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of `host` that answers."""
        if self._num_failed[host] >= HOST_GIVE_UP:
            raise httpcore.ConnectError(f"{host} was given up")
        if host not in self._lookups:
            self._lookups[host] = asyncio.create_task(_look_up(host))
        addresses = await asyncio.shield(self._lookups[host])
        if not self._allow_private and not all(map(is_public, addresses)):
            raise NoImageError("private_address")
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                self._num_failed[host] = 0
                return stream
        self._num_failed[host] += 1
        raise failure


async def _look_up(host: str) -> list[str]:
    """Addresses of a host, IPv4 first; none if it has none."""
    if host == "invalid" or host.endswith(".invalid"):
        return []  # RFC 6761 section 6.4: such names never resolve, and need no question
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Fetcher:
    """One run of fetches: a few workers a host, and a limit on what all of them do at once."""

    def __init__(self, params: DownloadParams, log: FetchLog, num_urls: int) -> None:
        self._params = params
        self._log = log
        self._num_urls = num_urls
        self._num_done = 0
        self._started = self._said = time.monotonic()

    async def run(self, urls: list[str]) -> None:
        hosts: dict[str, list[str]] = defaultdict(list)
        for url in urls:
            hosts[urlsplit(url).netloc].append(url)
        slots = asyncio.Semaphore(self._params.max_concurrent)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=httpcore.default_ssl_context(),
            max_connections=self._params.max_concurrent,
            network_backend=_GuardedBackend(allow_private=self._params.allow_private_addresses),
        )
        async with pool:
            workers = []
            for of_host in hosts.values():
                queue = iter(of_host)
                num_workers = min(self._params.max_per_host, len(of_host))
                workers += [self._work(queue, slots, pool) for _ in range(num_workers)]
            await asyncio.gather(*workers)

    async def _work(self, queue: Iterator[str], slots: asyncio.Semaphore, pool: httpcore.AsyncConnectionPool) -> None:
        for url in queue:
            async with slots:
                self._log.add(url, await self._outcome(url, pool))
            self._num_done += 1
            now = time.monotonic()
            if now - self._said >= EVERY_S or self._num_done == self._num_urls:
                self._said = now
                rate = self._num_done / max(now - self._started, 1e-3)
                logger.info("download: %d of %d fetched or failed, %.0f/s", self._num_done, self._num_urls, rate)

    async def _outcome(self, url: str, pool: httpcore.AsyncConnectionPool) -> bytes | str:
        """The body of `url`, or the reason why there is none."""
        try:
            async with asyncio.timeout(self._params.timeout_s):
                return await self._follow(url, pool)
        except NoImageError as error:
            return error.reason
        except (TimeoutError, httpcore.TimeoutException):
            return "timed_out"
        except (httpcore.ConnectError, httpcore.UnsupportedProtocol):
            return "unreachable"
        except (httpcore.ProtocolError, httpcore.NetworkError, OSError):
            return "broken_response"

    async def _follow(self, url: str, pool: httpcore.AsyncConnectionPool) -> bytes:
        agent = self._params.user_agent.encode()
        headers = [(b"User-Agent", agent), (b"Accept", b"image/*"), (b"Accept-Encoding", b"identity")]
        for _ in range(self._params.max_redirects + 1):
            async with pool.stream("GET", url, headers=headers) as response:
                if response.status == 200:
                    return await self._body(response)
                if response.status not in REDIRECTS:
                    passing = response.status >= 500 or response.status == 429
                    raise NoImageError("server_error" if passing else "bad_status")
                location = {name.lower(): value for name, value in response.headers}.get(b"location", b"")
            try:
                url = canonical(urljoin_checked(url, location.decode("utf-8", errors="replace").strip()))
            except UrlRefusedError as error:
                raise NoImageError("bad_redirect") from error
            if url.startswith("file:"):
                raise NoImageError("bad_redirect")
        raise NoImageError("too_many_redirects")

    async def _body(self, response: httpcore.Response) -> bytes:
        """The body, given up as soon as it is seen to be no image or too large."""
        body = bytearray()
        async for chunk in response.aiter_stream():
            is_sniffed = len(body) >= SNIFF_BYTES
            body += chunk
            if not is_sniffed and len(body) >= SNIFF_BYTES and sniff_mime(bytes(body[:SNIFF_BYTES])) is None:
                raise NoImageError("not_an_image")
            if len(body) > self._params.max_bytes:
                raise NoImageError("too_large")
        if sniff_mime(bytes(body[:SNIFF_BYTES])) is None:
            raise NoImageError("not_an_image")
        return bytes(body)
