"""Being stopped in good order: a signal sets a flag, the loop saves at the next step boundary, then the signal counts.

Collectives can't run inside a handler, so the handlers that were there (the launcher's) are kept and run later, by
`pass_on`, when the state is safe: rank 0 then queues the job again and the other processes wait to be ended with it.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from dinov2.distributed import rank, world_size

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the later one counts if both came: it is the one that means "queue again"
WAIT_FOR_END_S = 300.0

Handler = Callable[[int, FrameType | None], Any] | int | None


class Interruption:
    """Takes the signals while it is open; only in the main thread, elsewhere it never sees one."""

    def __init__(self) -> None:
        self._flag = 0  # 0, or 1 + the signal's place in SIGNALS
        self._previous: dict[int, Handler] = {}

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

    def agreed(self, device: torch.device) -> signal.Signals | None:
        """The signal that any process got, the same answer on all of them; forgets it. To be called together."""
        flag, self._flag = self._flag, 0
        if world_size() > 1:
            shared = torch.tensor([flag], device=device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
            flag = int(shared.item())
        return SIGNALS[flag - 1] if flag else None

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
