"""Where images come from: a source gives the bytes of its i-th image, its name and its class.

Curated shards, folders, file lists; Parquet files stand in parquet.py, several sources at once in mixture.py.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dinov2.files import files_below, is_utf8
from dinov2.params import InputError
from dinov2.shards import ShardReader

logger = logging.getLogger(__name__)

SUFFIXES = {  # names that files of decode.FORMATS go by
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".avifs", ".bmp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c",
}  # fmt: skip
NEWLINE, RETURN = 10, 13
SCAN_BYTES = 2**26  # of a list at once, when its lines are looked for


def digest(parts: Iterable[object]) -> str:
    """Hexadecimal sha256 of some values' text, each on a line."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part}\n".encode())
    return found.hexdigest()


@runtime_checkable  # shapes and types are checked when tests run
class Source(Protocol):
    """Images by number. `read` may be called by several threads at once."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(self, i: int) -> bytes:
        """Bytes of the i-th image file; raises OSError where they can't be had."""
        ...

    def id(self, i: int) -> str:
        """Its name: the sha256 in a manifest, the path in a folder."""
        ...

    def label(self, i: int) -> str | None:
        """Its class, if known."""
        ...

    def fingerprint(self) -> str:
        """A hash of what it lists, without reading images: another one means other images."""
        ...


class FolderSource:
    """Images in folders named by their label, `path/<label>/*`, in the order of their paths; loose images have none.

    Links are followed. A file is taken for an image by its suffix (SUFFIXES); the others are counted in `others`.
    """

    def __init__(self, path: Path, *, may_be_empty: bool = False) -> None:
        """Raises InputError if there is no image below `path`, unless it `may_be_empty`, or one not named in UTF-8."""
        self.path = path
        self.files: list[str] = []
        self.others = Counter[str]()
        """Number of files that are not taken for images, by suffix."""
        for name in files_below(path):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                self.files.append(name)
            else:
                self.others[suffix] += 1
        self.files.sort()
        if self.others:
            told = ", ".join(f"{num} {suffix or 'without suffix'}" for suffix, num in sorted(self.others.items()))
            logger.warning("%s: %d files are not taken for images: %s", path, self.others.total(), told)
        if not self.files and not may_be_empty:
            kinds = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{path} holds no images ({kinds}); put them there, a folder a label")
        for name in self.files:
            if not is_utf8(name):
                raise InputError(f"{str(path / name)!r} is not named in UTF-8, which tables can't hold; rename it")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> bytes:
        return (self.path / self.files[i]).read_bytes()

    def id(self, i: int) -> str:
        return self.files[i]

    def label(self, i: int) -> str | None:
        folder, separator, _ = self.files[i].partition("/")
        return folder if separator else None

    def fingerprint(self) -> str:
        return digest(f"{file} {_size(self.path / file)}" for file in self.files)


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a link to nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return None


class ListSource:
    """Image files named in a text file, a path a line, relative to that file; after a tab, if there is one, the label.

    The text stays on disk; eight bytes a line are kept.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError if the list can't be read or has no line. An absent file that it names is a bad sample."""
        self.path = path
        try:
            self._text: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); give a text file with a path a line") from error
        except ValueError:  # nothing to map
            self._text = np.empty(0, dtype=np.uint8)
        self._starts = _line_starts(self._text)
        if not len(self._starts):
            raise InputError(f"{path} has no line; write the path of an image into each, relative to it")

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, i: int) -> bytes:
        return (self.path.parent / self.id(i)).read_bytes()

    def id(self, i: int) -> str:
        return self._line(i)[0]

    def label(self, i: int) -> str | None:
        return self._line(i)[1]

    def fingerprint(self) -> str:
        return hashlib.sha256(self._text.data).hexdigest()

    def _line(self, i: int) -> tuple[str, str | None]:
        start = stop = int(self._starts[i])
        while stop < len(self._text) and self._text[stop] != NEWLINE:
            stop = min(stop + 256, len(self._text))
            found = np.flatnonzero(self._text[start:stop] == NEWLINE)
            stop = start + int(found[0]) if len(found) else stop
        name, separator, label = bytes(self._text[start:stop]).decode("utf-8", "replace").rstrip("\r").partition("\t")
        return name, label if separator and label else None


def _line_starts(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where lines begin that hold more than their end."""
    firsts = range(0, len(text), SCAN_BYTES)
    starts = [np.flatnonzero(text[first : first + SCAN_BYTES] == NEWLINE) + first + 1 for first in firsts]
    found = np.concatenate([np.zeros(1, dtype=np.int64), *starts])
    found = found[found < len(text)]
    return found[(text[found] != NEWLINE) & (text[found] != RETURN)]


class ShardSource:
    """Images of a manifest's rows, in the rows' order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], reader: ShardReader) -> None:
        """Raises InputError if there are no rows."""
        if not rows:
            raise InputError("the manifest has no rows, so there is nothing to train on; look at the stage before")
        self.rows = rows
        self.reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> bytes:
        return self.reader.read(self.rows[i])

    def id(self, i: int) -> str:
        return self.rows[i]["id"]

    def label(self, i: int) -> str | None:
        return self.rows[i]["label"]

    def fingerprint(self) -> str:
        return digest(row["id"] for row in self.rows)
