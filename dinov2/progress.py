"""Progress of long work: a bar in a log line every few seconds, to be seen in a terminal, a file and Prefect."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY_S = 5.0
BAR_WIDTH = 20

T = TypeVar("T")


def bar(done: int, total: int) -> str:
    """A bar of fixed width, and how much is done: `━━━━━━━━━━───────────  50 %`."""
    share = min(1.0, done / max(total, 1))
    filled = round(share * BAR_WIDTH)
    return "━" * filled + "─" * (BAR_WIDTH - filled) + f" {share:4.0%}"


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
    far = f"{count}" if total is None else f"{bar(count, total)}  {count} of {total}"
    logger.info("%s: %s, %.0f/s", what, far, count / max(seconds, 1e-3))
