"""What keeps a store sound and small: damaged blobs put aside, and what nothing names removed."""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from dinov2.records import sha256_file
from dinov2.store import ASIDE, DamagedError, Store, writer_of
from dinov2.store.pins import Pin, is_finished, named_in_work
from dinov2.store.transfer import each_blob

OLD_S = 86_400.0  # a temporary file of another machine that is older is of a killed writer


def damaged(store: Store, pins: Mapping[str, Pin], *, num_at_once: int) -> dict[str, str]:
    """Pinned blobs that are in the store with other bytes than theirs, or can't be read: name -> what is wrong."""
    there = store.sizes()

    def look(name: str) -> None:
        if there[name] != pins[name].size:
            raise DamagedError(f"{there[name]} of {pins[name].size} bytes")
        if not store.is_sound(name):
            raise DamagedError("other bytes than its own")

    return each_blob([name for name in pins if name in there], look, num_at_once, "looked at")


def remove_damaged_copies(store: Store, names: Iterable[str]) -> list[Path]:
    """Remove copies of a remote store's blobs that are not whole, which are fetched again; returns their paths."""
    copies = [] if store.is_local else [store.cache / name for name in names]
    found = [path for path in copies if path.exists() and sha256_file(path) != path.name[:64]]
    for path in found:
        path.unlink()
    return found


class Garbage(NamedTuple):
    """What may go."""

    blobs: dict[str, int]
    """Named by nothing: path -> bytes. Blobs that were put aside too, if the store has them whole again."""
    leftovers: dict[str, int]
    """Temporary files of writers that are gone."""
    copies: dict[Path, int]
    """Local copies of blobs of a remote store that nothing names."""
    work: list[Path]
    """Folders of finished work that name blobs which go, and could not be gone on with."""


def garbage(store: Store, pins: Mapping[str, Pin], works: Iterable[Path]) -> Garbage:
    """What neither `pins` nor unfinished work below `works` names; to be called while nobody uses the store."""
    in_work = {folder: names for work in works for folder, names in named_in_work(work).items()}
    needed = set(pins).union(*(names for folder, names in in_work.items() if not is_finished(folder)))
    blobs, leftovers, whole = {}, {}, store.sizes()
    for path, size in store.files():
        name = path.rpartition("/")[2]
        is_aside = path == f"{store.root}/{ASIDE}/{name}"
        if (name in whole and name not in needed and path == store.path(name)) or (is_aside and name in whole):
            blobs[path] = size
        elif path.endswith(".tmp") and _is_left(store, path):
            leftovers[path] = size
    cached = [] if store.is_local else [path for path in sorted(store.cache.glob("*")) if path.is_file()]
    copies = {path: path.stat().st_size for path in cached if path.name not in needed}
    gone = {path.rpartition("/")[2] for path in blobs} - needed
    return Garbage(blobs, leftovers, copies, [folder for folder, names in in_work.items() if names & gone])


def remove(store: Store, found: Garbage) -> None:
    """Remove it; first the work that names it, so that none is left half usable."""
    for folder in found.work:
        shutil.rmtree(folder)
    for path in (*found.blobs, *found.leftovers):
        store.filesystem.rm_file(path)
    for path in found.copies:
        path.unlink()


def remove_leftovers(store: Store) -> None:
    """Remove temporary files that killed writers of this machine left in a store or remote."""
    for path, _ in store.files():
        if path.endswith(".tmp") and (process := writer_of(path)) is not None and not psutil.pid_exists(process):
            store.filesystem.rm_file(path)


def _is_left(store: Store, path: str) -> bool:
    """Whether the writer of a temporary file is gone: of this machine, by its process; else by the file's age."""
    process = writer_of(path)
    if process is not None:
        return not psutil.pid_exists(process)
    written = store.filesystem.info(path).get("mtime")
    return isinstance(written, int | float) and time.time() - written > OLD_S
