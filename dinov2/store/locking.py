"""Who may use the store at once: stages, jobs and copies side by side; the one that removes blobs alone."""

import errno
import fcntl
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from dinov2.params import InputError

log = logging.getLogger(__name__)
LOCK = "store.lock"
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def in_use(work: Path) -> Iterator[None]:
    """Nothing is removed from the store meanwhile; waits for a removal that is under way."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            log.warning("%s can't be locked (%s): run no `dinov2.store gc` meanwhile", work / LOCK, error.strerror)
        yield


@contextmanager
def alone(works: Iterable[Path]) -> Iterator[None]:
    """No stage, job or copy of the repositories with these `work` folders uses the store meanwhile.

    Raises InputError where one does.
    """
    with ExitStack() as stack:
        for work in works:
            work.mkdir(parents=True, exist_ok=True)
            for path in sorted(work.glob("*/lock")):
                _take(stack.enter_context(path.open("a+")), f"stage {path.parent.name} runs")
            _take(stack.enter_context((work / LOCK).open("a+")), "a job, or a push or pull, uses the store")
        yield


def _take(lock: IO[str], why: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{why}, and may need blobs that nothing names yet; wait for it or stop it") from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        raise InputError(
            f"{lock.name} can't be locked ({error.strerror}), so nothing says who uses the store; "
            "remove blobs from a machine where this file system takes locks"
        ) from error
