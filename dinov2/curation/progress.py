"""Progress of a long loop, told by a log line every few seconds and one at its end."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY_S = 5.0

T = TypeVar("T")


def logged(items: Iterable[T], *, total: int | None, what: str, logger: logging.Logger) -> Iterator[T]:
    """The same `items` in the same order; says `what`, how many of `total` (None: unknown) and how many a second."""
    start = last = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= EVERY_S:
            last = now
            _say(count, total, what, now - start, logger)
    _say(count, total, what, time.monotonic() - start, logger)


def _say(count: int, total: int | None, what: str, seconds: float, logger: logging.Logger) -> None:
    of = "" if total is None else f" of {total}"
    logger.info("%s: %d%s, %.0f/s", what, count, of, count / max(seconds, 1e-3))
