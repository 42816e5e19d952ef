"""Hashes of a stage's inputs: by them it tells whether they are those that it has seen before.

Files are hashed side by side. Hashes are remembered, and taken again while a file's size, time and inode stay the same
(as DVC and git do), so that terabytes are read at the first start, not at each.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dinov2.files import files_below
from dinov2.params import InputError
from dinov2.records import sha256_file

NUM_THREADS = 8  # more than cores: files of a network's disk are waited for
FILES_AT_ONCE = 1024
SETTLED_NS = 2 * 10**9  # a file that changed this shortly before may change again under the same time
ABSENT = "absent"  # in place of a hash, for a link to nowhere
LINE = re.compile(r"([!-~]+) ([0-9]+/[0-9]+/[0-9]+)? ([0-9a-f]{64})\n")  # name, state, hash


class Hashed(NamedTuple):
    """A file's hash, and what shows that it is still right."""

    name: str
    """Relative path."""
    state: str
    """Size, time and inode; empty if the file may yet change without another."""
    sha256: str


def hash_inputs(paths: Mapping[str, str], memory: Path) -> dict[str, str]:
    """`hash_tree` of each input, by its option. Raises InputError if one is not there."""
    for name, path in paths.items():
        if not Path(path).exists():
            do = "run the stage that makes it, or mend `inputs:` in params.yaml"
            raise InputError(f"--{name} {path} does not exist; {do}")
    return {name: hash_tree(Path(path), memory) for name, path in sorted(paths.items())}


def hash_tree(path: Path, memory: Path | None = None) -> str:
    """sha256 over the names and contents of a file or of all files below a folder, links followed.

    `memory` is a folder that remembers the files' hashes. Raises InputError for what the user may not read.
    """
    digest = hashlib.sha256()
    for each in _hashes(path, memory):
        digest.update(os.fsencode(each.name) + f"\0{each.sha256}\n".encode())
    return digest.hexdigest()


def _hashes(path: Path, memory: Path | None) -> Iterator[Hashed]:
    """Each file's, in the order of their names' parts; remembered for the next time."""
    folder, names = (path.parent, iter([path.name])) if path.is_file() else (path, files_below(path))
    if memory is None:
        yield from _read(folder, names, iter(()))
        return
    place = memory / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.txt"
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    memory.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("w") as stream:
            for each in _read(folder, names, _remembered(place)):
                name = each.name.encode("unicode_escape").decode("ascii").replace(" ", r"\x20")
                stream.write(f"{name} {each.state} {each.sha256}\n")
                yield each
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _remembered(place: Path) -> Iterator[Hashed]:
    """What was found the last time, in the same order."""
    if not place.exists():
        return
    with place.open(errors="replace") as stream:
        for line in stream:
            if match := LINE.fullmatch(line):
                name, state, sha256 = match.groups("")
                with suppress(ValueError):  # a name that was damaged
                    yield Hashed(name.encode("ascii").decode("unicode_escape"), state, sha256)


def _read(folder: Path, names: Iterator[str], before: Iterator[Hashed]) -> Iterator[Hashed]:
    """Hashes of files, taken from `before` where that still holds."""
    last = next(before, None)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while some := list(islice(names, FILES_AT_ONCE)):
            known: list[Hashed | None] = []
            for name in some:
                while last is not None and last.name.split("/") < name.split("/"):
                    last = next(before, None)
                known.append(last if last is not None and last.name == name else None)
            yield from threads.map(partial(_hash, folder), some, known)


def _hash(folder: Path, name: str, old: Hashed | None) -> Hashed:
    path = folder / name
    try:
        about = path.stat()
        state = f"{about.st_size}/{about.st_mtime_ns}/{about.st_ino}"
        if old is not None and old.state == state:
            return old
        is_settled = time.time_ns() - about.st_mtime_ns > SETTLED_NS
        return Hashed(name, state if is_settled else "", sha256_file(path))
    except FileNotFoundError:
        return Hashed(name, "", ABSENT)
    except PermissionError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); mend its permissions") from error
