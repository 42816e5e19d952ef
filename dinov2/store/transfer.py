"""Copies between two stores: several blobs at once, each by itself whole or not at all."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from dinov2.progress import logged
from dinov2.store import Store
from dinov2.store.pins import Pin

log = logging.getLogger(__name__)


class Copied(NamedTuple):
    """What became of the blobs that were missing."""

    names: list[str]
    absent: list[str]
    """Not at the source either."""
    failed: dict[str, str]
    """Blob -> why it could not be copied."""
    num_bytes: int
    """Copied."""


def copy_missing(source: Store, target: Store, pins: Mapping[str, Pin], *, num_at_once: int) -> Copied:
    """Copy those of the pinned blobs that `target` lacks, or holds cut short; smaller ones are there sooner, so first.

    What is whole in `target` stays there if this is killed or a blob fails: the next call copies the rest.
    """
    there, here = target.sizes(), source.sizes()
    missing = sorted((pin.size, name) for name, pin in pins.items() if there.get(name) != pin.size)
    ready = [name for _, name in missing if name in here]
    failed = each_blob(ready, lambda name: target.receive(name, source.read(name)), num_at_once, "copied")
    copied = [name for name in ready if name not in failed]
    absent = [name for _, name in missing if name not in here]
    return Copied(copied, absent, failed, sum(pins[name].size for name in copied))


def each_blob(names: Iterable[str], do: Callable[[str], None], num_at_once: int, what: str) -> dict[str, str]:
    """Do it for each of the blobs, several at once; returns why it failed where it did."""
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(num_at_once) as threads:
        running = {threads.submit(do, name): name for name in names}
        try:
            for done in logged(as_completed(running), total=len(running), what=f"blobs {what}", logger=log):
                try:
                    done.result()
                except Exception as error:  # clients of remotes raise of every kind
                    failed[running[done]] = str(error) or type(error).__name__
        except BaseException:  # stopped: those that have not begun don't
            threads.shutdown(cancel_futures=True)
            raise
    return failed
