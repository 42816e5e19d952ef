"""Batches made ahead by threads, handed out in order; which batch is which depends on the step alone.

Threads rather than processes: decoding, resizing and every tensor operation free the interpreter lock, batches need no
copy between processes, and a killed job leaves nothing behind.
"""

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
LOOK_S = 1.0  # between looks at whether the threads still live
LEAVE_S = 10.0  # for a thread to end; one that hangs in a read is left behind, and dies with the process


class Loader(Generic[T]):
    """Runs `make(step)` for the steps of `steps` in `num_threads` threads, `num_ahead` batches ahead of the reader.

    with Loader(make, range(100, 200), num_threads=2, num_ahead=3) as loader:
        for batch in loader: ...          # batches of steps 100, 101, ...; what `make` raises is raised here
    """

    def __init__(self, make: Callable[[int], T], steps: range, *, num_threads: int, num_ahead: int) -> None:
        assert num_threads > 0, num_threads
        assert num_ahead > 0, num_ahead
        self._make = make
        self._steps = steps
        self._next = 0  # number of the next batch to begin
        self._taken = 0  # batches handed out
        self._num_ahead = num_ahead
        self._ready: dict[int, T | BaseException] = {}
        self._makers: dict[int, threading.Thread] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batches-{number}", daemon=True) for number in range(num_threads)
        ]

    def __enter__(self) -> Self:
        num_compute_threads = torch.get_num_threads()
        self._started = threading.Barrier(len(self._threads) + 1)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # the system gives no more threads
            self._started.abort()
            raise
        self._started.wait()
        torch.set_num_threads(num_compute_threads)  # the threads' own setting also became the one of later threads
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        leave_until = time.monotonic() + LEAVE_S
        for thread in self._threads:
            thread.join(max(0.0, leave_until - time.monotonic()))

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._steps)):
            batch = self._take(number)
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def _take(self, number: int) -> T | BaseException:
        """A batch, or what was raised in its making; raises RuntimeError if nobody is left to make it."""
        with self._changed:
            while not self._changed.wait_for(lambda: number in self._ready, LOOK_S):
                makers = [self._makers[number]] if number in self._makers else self._threads
                if not any(thread.is_alive() for thread in makers) and number not in self._ready:
                    raise RuntimeError(f"step {self._steps[number]}: the thread that should make its batch has died")
            self._makers.pop(number)
            self._taken += 1
            self._changed.notify_all()
            return self._ready.pop(number)

    def _work(self) -> None:
        torch.set_num_threads(1)  # of this thread: a batch is one thread's work
        self._started.wait()
        while True:
            with self._changed:
                self._changed.wait_for(self._may_begin)
                if self._stopped or self._next >= len(self._steps):
                    return
                number = self._next
                self._next += 1
                self._makers[number] = threading.current_thread()
            try:
                batch: T | BaseException = self._make(self._steps[number])
            except BaseException as error:  # raised again in the reader's thread
                batch = error
            with self._changed:
                if not self._stopped:
                    self._ready[number] = batch
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        return self._stopped or self._next >= len(self._steps) or self._next < self._taken + self._num_ahead
