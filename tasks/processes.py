"""Processes of this machine: known again by number and start, found again by what they work in, ended with theirs."""

import contextlib
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil


def start_time(pid: int) -> float:
    """Seconds from the machine's start to that of the process, which no setting of the clock changes.

    Raises psutil.NoSuchProcess.
    """
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 2)


def living(pid: int, started: float | None) -> psutil.Process | None:
    """The process with that number and start time, if it still lives: numbers are used again."""
    try:
        process = psutil.Process(pid)
        if start_time(pid) == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.NoSuchProcess:
        pass
    return None


def num_living_children(process: psutil.Process) -> int:
    """How many children it has that have not ended; 0 also if it, or one of them, ends just now."""
    try:
        return sum(child.status() != psutil.STATUS_ZOMBIE for child in process.children())
    except psutil.NoSuchProcess:
        return 0


def running(package: str, folder: Path) -> list[psutil.Process]:
    """Processes of `python -m <package>.X` that were given a path below `folder`."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []  # none of another user's, or of a zombie
        starts = (f"{package}.", f"{folder.absolute()}/")
        if all(any(word.startswith(start) for word in words) for start in starts):
            found.append(process)
    return found


def end(roots: Iterable[psutil.Process]) -> None:
    """End processes and their descendants, those that do not obey by force."""
    family: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= {one.pid: one for one in (root, *root.children(recursive=True))}
    for process in family.values():
        _send(process, signal.SIGINT)
    _, alive = psutil.wait_procs(list(family.values()), timeout=5)
    for process in alive:
        _send(process, signal.SIGKILL)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
