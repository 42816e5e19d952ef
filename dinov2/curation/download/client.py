"""Requests as politeness allows them: each in its host's turn, and again after a pause where a failure may pass."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpcore

from dinov2.curation.download.addresses import GuardedBackend
from dinov2.curation.download.answer import Answer, HttpParams, PassingError, ask
from dinov2.curation.download.politeness import Host, PolitenessParams, Waits, pause_s

KEEP_ALIVE_S = 30.0

T = TypeVar("T")


def host_of(url: str) -> str:
    """The host name of a canonical URL."""
    return urlsplit(url).hostname or ""


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpcore.default_ssl_context()  # reads all certificates: a tenth of a second


class Client:
    """Connections to hosts and what is known of these; large bodies lie in `folder` while they come.

    Every host has a pool of connections of its own: httpcore looks at all of a pool's for each request.
    """

    def __init__(self, http: HttpParams, politeness: PolitenessParams, waits: Waits, folder: Path) -> None:
        self.http = http
        self.politeness = politeness
        self._folder = folder
        self._waits = waits
        self._hosts: dict[str, Host] = {}
        self._backend = GuardedBackend(allow_private=http.allow_private_addresses)
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        self._num_visitors: Counter[str] = Counter()

    def host(self, url: str) -> Host:
        """The host of a canonical URL."""
        name = host_of(url)
        if name not in self._hosts:
            self._hosts[name] = Host(self.politeness, self._waits.until(name))
        return self._hosts[name]

    @asynccontextmanager
    async def visit(self, url: str) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        """Connections to the host of `url`, kept open until its last visitor has left."""
        host = host_of(url)
        if host not in self._pools:
            self._pools[host] = self._pool()
        self._num_visitors[host] += 1
        try:
            yield self._pools[host]
        finally:
            self._num_visitors[host] -= 1
            if not self._num_visitors[host]:
                del self._num_visitors[host]
                await self._pools.pop(host).aclose()

    @asynccontextmanager
    async def ask(self, url: str, accept: str) -> AsyncIterator[Answer]:
        """The answer to one request, in its host's turn; raises as `answer.ask` does.

        Raises PassingError with `host_given_up` if the host asked to be left alone, be it while this one waited.
        """
        host = self.host(url)
        async with self.visit(url) as pool, host.turn():
            if host.left_for_s > 0:
                raise PassingError("host_given_up")
            async with ask(pool, url, self.http, accept=accept, folder=self._folder) as answer:
                yield answer

    def _pool(self) -> httpcore.AsyncConnectionPool:
        size = self.politeness.max_per_host
        return httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=size,
            max_keepalive_connections=size,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=self._backend,
        )

    async def retried(self, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt`, which asks for `url`, gives at last; raises the PassingError of the last one."""
        num_failed, host = 0, self.host(url)
        while True:
            try:
                return await attempt()
            except PassingError as error:
                num_failed += 1
                asked_s = error.retry_after_s or 0.0
                if asked_s > self.politeness.max_pause_s:
                    host.leave(self._waits.add(host_of(url), asked_s))
                if host.left_for_s > 0:
                    raise
                pause = max(asked_s, pause_s(self.politeness, url, num_failed))
                if asked_s or error.reason == "too_many_requests":  # said for the host, not for this image
                    host.hold(pause)
                if num_failed >= self.politeness.max_attempts:
                    if asked_s:
                        self._waits.add(host_of(url), asked_s)  # the next round may begin before that
                    raise
            await asyncio.sleep(pause)
