"""How a host is asked: by few at once, not too often, and no more once it has had enough.

A host is a host name, whatever its ports: those are one machine. Pauses before another try grow and are spread by a
draw from seed and URL, so that they are the same in every run.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinov2.params import Params


class PolitenessParams(Params):
    """What no host is asked beyond."""

    max_hosts: Annotated[int, Field(gt=0)]
    """Hosts visited at once by a worker; this times `max_per_host` is the most it asks at once."""
    max_per_host: Annotated[int, Field(gt=0)]
    """Requests to one host at once."""
    delay_s: Annotated[float, Field(ge=0)]
    """Least seconds between the starts of two requests to one host."""
    max_crawl_delay_s: Annotated[float, Field(ge=0)]
    """A longer Crawl-delay of a robots.txt is cut to this."""
    max_attempts: Annotated[int, Field(gt=0)]
    """Requests for one image that may fail in a passing way, in each of the three rounds."""
    backoff_s: Annotated[float, Field(ge=0)]
    """Mean pause before the second try; doubled before each further one."""
    max_pause_s: Annotated[float, Field(ge=0)]
    """Longest pause; a host that asks for more by Retry-After is left alone so long, its images for a later round."""
    max_wait_s: Annotated[float, Field(ge=0)]
    """Longest that a round waits for such a host; one that asks for more is not asked in that round."""
    give_up_after: Annotated[int, Field(gt=0)]
    """Images of one host that fail in a row, in a passing way, before the rest is left until the next round."""
    seed: Annotated[int, Field(ge=0)]
    """Of the pauses."""


class Host:
    """One host: whose turn it is, when, and whether there is any use in asking."""

    def __init__(self, params: PolitenessParams, left_until: float = 0.0) -> None:
        """`left_until` (seconds since 1970) is when it may be asked again, if it said so."""
        self._params = params
        self._left_until = left_until
        self._places = asyncio.Semaphore(params.max_per_host)
        self._door = asyncio.Lock()
        self._opens_at = 0.0
        self._num_failed = 0
        self.delay_s = params.delay_s

    @property
    def is_given_up(self) -> bool:
        """Whether too many images failed in a row, or it asked to be left alone."""
        return self._num_failed >= self._params.give_up_after or self.left_for_s > 0

    @property
    def left_for_s(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._left_until - time.time())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The time of one request: waits for a place and for the delay since the last request began."""
        now = asyncio.get_running_loop().time
        async with self._places:
            async with self._door:
                while (wait := self._opens_at - now()) > 0:
                    await asyncio.sleep(wait)
                self._opens_at = now() + self.delay_s
            yield

    def hold(self, pause_s: float) -> None:
        """Ask nothing of this host for that long."""
        self._opens_at = max(self._opens_at, asyncio.get_running_loop().time() + pause_s)

    def slow_down(self, crawl_delay_s: float) -> None:
        """Heed the Crawl-delay of a robots.txt, up to the limit."""
        self.delay_s = max(self.delay_s, min(crawl_delay_s, self._params.max_crawl_delay_s))

    def leave(self, until: float) -> None:
        """Don't ask before that time, in seconds since 1970."""
        self._left_until = max(self._left_until, until)

    def note(self, *, failed: bool) -> None:
        """Count an image that failed in a passing way; one that did not begins the count anew."""
        self._num_failed = self._num_failed + 1 if failed else 0


class Waits:
    """Until when hosts asked to be left alone: in a file, as it must be heeded in later rounds and after a kill too."""

    def __init__(self, path: Path) -> None:
        """Reads what the file holds; a line that a kill cut short is passed over."""
        self._path = path
        self._until: dict[str, float] = {}
        with suppress(FileNotFoundError):
            for line in path.read_text(errors="replace").splitlines():
                with suppress(ValueError):
                    host, until = line.split(" ")
                    self._until[host] = float(until)

    def until(self, host: str) -> float:
        """When that is, in seconds since 1970; 0 for hosts that did not ask."""
        return self._until.get(host, 0.0)

    def add(self, host: str, seconds: float) -> float:
        """Note that a host asked for that many seconds; returns until when."""
        self._until[host] = max(self.until(host), time.time() + seconds)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.write(f"\n{host} {self._until[host]:.3f}\n")
        return self._until[host]


def pause_s(params: PolitenessParams, url: str, num_failed: int) -> float:
    """Seconds before the next try of `url` after `num_failed` of them: doubled each time, times 0.5 to 1.5."""
    digest = hashlib.sha256(f"{params.seed} {num_failed} {url}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    return min(params.backoff_s * 2.0 ** (num_failed - 1) * (0.5 + draw), params.max_pause_s)


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as an HTTP date; None if it is neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return max(0.0, (when - now).total_seconds())
