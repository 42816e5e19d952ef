"""A watch over the loop: where no step ends for too long, every thread's stack goes to the log and the process ends.

A collective that hangs can't be undone from inside; ended, the job is started again and goes on from its checkpoint.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from dinov2.distributed import rank

logger = logging.getLogger(__name__)

STALLED = 75  # exit code; EX_TEMPFAIL of sysexits.h: try again
LOOKS = 10  # how often it looks within `stall_s`


class Watchdog:
    """with Watchdog(stall_s) as watchdog: ... watchdog.beat(step, "the step") ...

    `stall_s` None switches it off. It runs from the first beat on.
    """

    def __init__(self, stall_s: float | None) -> None:
        self.stall_s = stall_s
        self._step = 0
        self._doing = ""
        self._beat: float | None = None  # None: not to be counted now
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.stall_s is not None:
            self._thread = threading.Thread(target=self._watch, args=(self.stall_s,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, step: int, doing: str) -> None:
        """A sign of life: `step` steps are done, and what comes next is `doing`."""
        self._step, self._doing, self._beat = step, doing, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take long and is no step: compiling, watching features, waiting for a checkpoint."""
        was, self._beat = self._beat, None
        try:
            yield
        finally:
            self._beat = None if was is None else time.monotonic()

    def _watch(self, stall_s: float) -> None:
        look_s = stall_s / LOOKS
        looked = time.monotonic()
        while not self._closed.wait(look_s):
            now, beat = time.monotonic(), self._beat
            if now - looked > stall_s / 2 and beat is not None:  # this thread slept too: the process was stopped
                self._beat = now
            elif beat is not None and now - beat > stall_s:
                self._end(now - beat)
            looked = now

    def _end(self, seconds: float) -> None:
        logger.error(
            "rank %d: nothing has happened for %.0f s after step %d, while waiting for %s; the stacks of all threads "
            "follow. The process ends with code %d, so that the job can be started again from its last checkpoint",
            rank(), seconds, self._step, self._doing, STALLED,
        )  # fmt: skip
        for handler in logging.getLogger().handlers:
            handler.flush()
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        os._exit(STALLED)
