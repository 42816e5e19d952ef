"""Batches made ahead by threads, handed out in order; which batch is which depends on the step alone.

Threads rather than processes: decoding, resizing and every tensor operation free the interpreter lock, batches need no
copy between processes, and a killed job leaves nothing behind.
"""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")


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
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batches-{number}", daemon=True) for number in range(num_threads)
        ]

    def __enter__(self) -> Self:
        num_compute_threads = torch.get_num_threads()
        started = threading.Barrier(len(self._threads) + 1)
        self._started = started
        for thread in self._threads:
            thread.start()
        started.wait()
        torch.set_num_threads(num_compute_threads)  # the threads' own setting also became the one of later threads
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._steps)):
            with self._changed:
                self._changed.wait_for(lambda number=number: number in self._ready)
                batch = self._ready.pop(number)
                self._taken += 1
                self._changed.notify_all()
            if isinstance(batch, BaseException):
                raise batch
            yield batch

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
            try:
                batch: T | BaseException = self._make(self._steps[number])
            except BaseException as error:  # raised again in the reader's thread
                batch = error
            with self._changed:
                self._ready[number] = batch
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        return self._stopped or self._next >= len(self._steps) or self._next < self._taken + self._num_ahead
