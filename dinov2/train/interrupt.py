"""Being stopped in good order: a signal sets a flag, the loop saves at a step boundary, then the signal counts.

Processes agree one step late: at each boundary they begin to share their flags, over a gloo group of their own, and
read what was shared a step before, which has long arrived. So nobody waits, and all stop after the same step.
Collectives can't run inside a handler, so the handlers that were there (the launcher's) are kept and run later, by
`pass_on`, when the state is safe: rank 0 then queues the job again and the other processes wait to be ended with it.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

from dinov2.distributed import own_group, rank

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the later one counts if both came: it is the one that means "queue again"
WAIT_FOR_END_S = 300.0

Handler = Callable[[int, FrameType | None], Any] | int | None


class Boundary(NamedTuple):
    """What all processes know at a step boundary."""

    signal: signal.Signals | None
    """That any of them got."""
    has_failed: bool
    """Whether any of them said so."""


class Interruption:
    """Takes the signals while it is open; only in the main thread, elsewhere it never sees one.

    Made by all processes together.
    """

    def __init__(self) -> None:
        self._flag = 0  # 0, or 1 + the signal's place in SIGNALS
        self._previous: dict[int, Handler] = {}
        self._group = own_group()
        self._shared = torch.zeros(2, dtype=torch.int64)
        self._sharing: dist.Work | None = None

    def __enter__(self) -> Self:
        try:
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        except ValueError:  # not the main thread
            self._previous = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._flag = max(self._flag, 1 + SIGNALS.index(signal.Signals(number)))

    def agreed(self, *, has_failed: bool, is_last: bool) -> Boundary:
        """What any process got or said, the same answer on all of them; forgets it. To be called together, every step.

        With several processes it is what they had to say a step ago; at the last boundary, what they say now.
        """
        if self._group is None:
            flag, self._flag = self._flag, 0
            return _boundary(flag, int(has_failed))
        late = self._received()
        flag, self._flag = self._flag, 0
        self._shared = torch.tensor([flag, int(has_failed)])
        self._sharing = dist.all_reduce(self._shared, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        if not is_last:
            return _boundary(*late)
        return _boundary(*map(max, late, self._received()))

    def _received(self) -> list[int]:
        if self._sharing is not None:
            self._sharing.wait()
        self._sharing = None
        return self._shared.tolist()

    def pass_on(self, number: signal.Signals) -> None:
        """Do what the signal does without us: end this process, or call the launcher's handler (which may return)."""
        previous = self._previous.get(number)
        if not callable(previous):
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
            os.kill(os.getpid(), number)
            return
        if rank() == 0 or number == signal.SIGTERM:
            previous(number, None)
            return
        logger.warning("waiting for rank 0 to queue the job again")
        time.sleep(WAIT_FOR_END_S)
        raise SystemExit(f"rank 0 did not end the job within {WAIT_FOR_END_S:.0f} s")


def _boundary(flag: int, failed: int) -> Boundary:
    return Boundary(SIGNALS[flag - 1] if flag else None, bool(failed))
