"""One HTTP(S) request and its answer, within limits of size and time.

Whatever a server does, an answer takes at most `timeout_s` and `max_bytes`; one that trickles ends sooner. A body of
more than a megabyte lies in a file, so memory does not grow with what servers send. h11 stops at 100 kB of headers.
"""

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated

import httpcore
from pydantic import Field

from dinov2.curation.crawl.urls import UrlRefusedError, resolve
from dinov2.curation.download.addresses import MAX_ADDRESSES, NoSuchHostError, PrivateAddressError
from dinov2.curation.download.politeness import parse_retry_after
from dinov2.curation.sniff import SNIFF_BYTES
from dinov2.params import Params

REDIRECTS = (301, 302, 303, 307, 308)
IN_MEMORY_BYTES = 1 << 20


class HttpParams(Params):
    """What an answer may cost."""

    user_agent: Annotated[str, Field(min_length=1, pattern="^[ -~]+$")]
    """What servers are told; name yourself and a page that explains."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Seconds for one answer, the connection included."""
    patience_s: Annotated[float, Field(gt=0)]
    """Seconds for the connection and the head of an answer, and that its body may lag behind `min_bytes_per_s`."""
    min_bytes_per_s: Annotated[float, Field(gt=0)]
    """A body that comes more slowly is given up."""
    max_redirects: Annotated[int, Field(ge=0)]
    """Redirects followed for one image."""
    allow_private_addresses: bool
    """Whether loopback and private addresses may be connected to; only for a crawl of one's own servers."""


class NoImageError(Exception):
    """An image that can't be had; `reason` is the drop reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PassingError(Exception):
    """A failure that may pass; `reason` is the drop reason if it does not, `retry_after_s` what the server asks for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Answer:
    """The head of an answer; the body is read on demand, into a file of `folder` where it is large."""

    def __init__(self, response: httpcore.Response, params: HttpParams, pace: asyncio.Timeout, folder: Path) -> None:
        self.status = response.status
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        self.is_body_begun = False
        self._response = response
        self._params = params
        self._pace = pace
        self._folder = folder

    def header(self, name: str) -> str:
        """The first header of that name (in lower case); empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def location(self, url: str) -> str:
        """Where a redirect of `url` leads; raises NoImageError with `bad_redirect`."""
        letters = [letter if letter.isascii() else f"%{ord(letter):02X}" for letter in self.header("location")]
        try:
            return resolve("".join(letters), url)  # bytes outside ASCII are sent back as they came
        except UrlRefusedError as error:
            raise NoImageError("bad_redirect") from error

    @property
    def encoding(self) -> str:
        """How the body is encoded, though we ask for it as it is; empty if it is not."""
        name = self.header("content-encoding").strip().lower()
        return "" if name == "identity" else name

    async def body(
        self, max_bytes: int, is_wanted: Callable[[bytes], bool], *, may_be_encoded: bool = False
    ) -> IO[bytes]:
        """The body, at most `max_bytes` + 1 bytes of it; given up as soon as its first bytes are seen to be unwanted.

        Raises NoImageError with `content_encoding` or `not_an_image`.
        """
        if self.encoding and not may_be_encoded:
            raise NoImageError("content_encoding")  # we asked for none: a bomb, or a server that heeds nothing
        self.is_body_begun = True
        with ExitStack() as stack:
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(self._folder)))
            await self._copy(spool, max_bytes, is_wanted)
            spool.seek(0)
            stack.pop_all()  # whoever asks closes it
        return spool

    async def _copy(self, spool: IO[bytes], max_bytes: int, is_wanted: Callable[[bytes], bool]) -> None:
        started = asyncio.get_running_loop().time()
        head, num_bytes = b"", 0
        async for chunk in self._response.aiter_stream():
            spool.write(chunk[: max_bytes + 1 - num_bytes])
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                return
            if len(head) < SNIFF_BYTES:
                head += chunk[: SNIFF_BYTES - len(head)]
                if len(head) == SNIFF_BYTES and not is_wanted(head):
                    raise NoImageError("not_an_image")
            self._pace.reschedule(started + self._params.patience_s + num_bytes / self._params.min_bytes_per_s)
        if num_bytes < SNIFF_BYTES and not is_wanted(head):
            raise NoImageError("not_an_image")


@asynccontextmanager
async def ask(
    pool: httpcore.AsyncConnectionPool, url: str, params: HttpParams, *, accept: str, folder: Path
) -> AsyncIterator[Answer]:
    """The answer to one GET of the canonical `url`; its limits of time hold until the context is left.

    Raises NoImageError with `private_address`, `unreachable` or `too_slow`, and PassingError with `unreachable`,
    `timed_out`, `broken_response`, `server_error` (5xx) or `too_many_requests` (429).
    """
    headers = {"User-Agent": params.user_agent, "Accept": accept, "Accept-Encoding": "identity"}
    limits = {"timeout": {"connect": params.patience_s / MAX_ADDRESSES, "pool": params.timeout_s}}
    answer, pace = None, asyncio.timeout(params.patience_s)
    try:
        async with (
            asyncio.timeout(params.timeout_s),
            pace,
            pool.stream("GET", url, headers=list(headers.items()), extensions=limits) as response,
        ):
            answer = Answer(response, params, pace, folder)
            if answer.status >= 500 or answer.status == 429:
                raise _passing(answer)
            yield answer
    except PrivateAddressError as error:
        raise NoImageError("private_address") from error
    except NoSuchHostError as error:
        raise NoImageError("unreachable") from error
    except (TimeoutError, httpcore.TimeoutException) as error:
        if answer is not None and answer.is_body_begun and pace.expired():
            raise NoImageError("too_slow") from error
        raise PassingError("timed_out") from error
    except (httpcore.ConnectError, httpcore.UnsupportedProtocol) as error:
        raise PassingError("unreachable") from error
    except (httpcore.ProtocolError, httpcore.NetworkError, ConnectionError, ssl.SSLError) as error:
        raise PassingError("broken_response") from error


def _passing(answer: Answer) -> PassingError:
    reason = "too_many_requests" if answer.status == 429 else "server_error"
    return PassingError(reason, parse_retry_after(answer.header("retry-after"), datetime.now(UTC)))
