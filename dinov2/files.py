"""The files below a folder, through links too: inputs are often put together from links to where images lie."""

import os
from collections.abc import Iterator
from pathlib import Path

from dinov2.params import InputError


def is_utf8(name: str) -> bool:
    """Whether a file's name is text: Python keeps bytes that are no UTF-8 as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def files_below(folder: Path) -> Iterator[str]:
    """Relative paths of all files below `folder`, by their parts in alphabetical order.

    Links are followed, unless they lead to a folder that holds them. A link to nowhere counts as a file: who reads it
    will say that it can't be read. Raises InputError if a folder can't be read, as its files would go unnoticed.
    """
    yield from _below(folder, "", frozenset())


def _below(folder: Path, prefix: str, holders: frozenset[tuple[int, int]]) -> Iterator[str]:
    try:
        found = folder.stat()
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir(), entry.is_file() or entry.is_symlink()) for entry in scan)
    except OSError as error:
        raise InputError(f"the folder {folder} can't be read ({error.strerror}); mend its permissions") from error
    identity = (found.st_dev, found.st_ino)
    if identity in holders:
        return
    for name, is_folder, is_file in entries:
        if is_folder:
            yield from _below(folder / name, f"{prefix}{name}/", holders | {identity})
        elif is_file:
            yield prefix + name
