"""The loader: order, errors, threads that die, and how it ends."""

import ctypes
import threading
import time

import pytest
import torch

from dinov2.data.loader import Loader
from dinov2.params import InputError


def test_loader_raises_what_a_thread_raised_in_its_turn() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise InputError("the second is bad")
        return step

    taken = []
    with pytest.raises(InputError, match="second"), Loader(make, range(5), num_threads=2, num_ahead=4) as loader:
        for step in loader:
            taken.append(step)  # noqa: PERF402 - what came before the error counts
    assert taken == [0, 1]


def test_loader_leaves_the_compute_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    with Loader(lambda step: torch.get_num_threads(), range(3), num_threads=2, num_ahead=2) as loader:
        assert list(loader) == [1, 1, 1]
    assert torch.get_num_threads() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loader_tells_that_its_thread_was_killed() -> None:
    with (
        pytest.raises(RuntimeError, match=r"step \d+: the thread that should make its batch has died"),
        Loader(lambda step: step, range(100), num_threads=1, num_ahead=1) as loader,
    ):
        for step in loader:
            if step == 5:
                (victim,) = loader._threads
                identity = ctypes.c_ulong(victim.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(SystemExit))


def test_loader_ends_at_once_when_its_reader_stops() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        return step

    started = time.monotonic()
    with Loader(make, range(10**6), num_threads=2, num_ahead=4) as loader:
        assert next(iter(loader)) == 0
    assert time.monotonic() - started < 5
    assert len(made) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches-")]
