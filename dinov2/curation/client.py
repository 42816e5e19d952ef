"""Requests as politeness allows them: each in its host's turn, and again after a pause where a failure may pass."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpcore

from dinov2.curation.addresses import GuardedBackend
from dinov2.curation.answer import Answer, HttpParams, PassingError, ask
from dinov2.curation.politeness import Host, PolitenessParams, pause_s

KEEP_ALIVE_S = 30.0

T = TypeVar("T")


def host_of(url: str) -> str:
    """The host name of a canonical URL."""
    return urlsplit(url).hostname or ""


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpcore.default_ssl_context()  # reads all certificates: a tenth of a second


class Client:
    """Connections to hosts and what is known of these; large bodies lie in `folder` while they come."""

    def __init__(self, http: HttpParams, politeness: PolitenessParams, folder: Path) -> None:
        self.http = http
        self.politeness = politeness
        self._folder = folder
        self._hosts: defaultdict[str, Host] = defaultdict(lambda: Host(politeness))
        max_connections = politeness.max_hosts * politeness.max_per_host
        self.pool = httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=GuardedBackend(allow_private=http.allow_private_addresses),
        )

    def host(self, url: str) -> Host:
        """The host of a canonical URL."""
        return self._hosts[host_of(url)]

    @asynccontextmanager
    async def ask(self, url: str, accept: str) -> AsyncIterator[Answer]:
        """The answer to one request, in its host's turn; raises as `answer.ask` does."""
        async with self.host(url).turn(), ask(self.pool, url, self.http, accept=accept, folder=self._folder) as answer:
            yield answer

    async def retried(self, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt`, which asks for `url`, gives at last; raises the PassingError of the last one."""
        num_failed = 0
        while True:
            try:
                return await attempt()
            except PassingError as error:
                num_failed += 1
                asked_s = error.retry_after_s or 0.0
                if asked_s > self.politeness.max_pause_s:
                    self.host(url).give_up()
                    raise
                if num_failed >= self.politeness.max_attempts:
                    raise
                pause = max(asked_s, pause_s(self.politeness, url, num_failed))
                if asked_s or error.reason == "too_many_requests":  # said for the host, not for this image
                    self.host(url).hold(pause)
            await asyncio.sleep(pause)
