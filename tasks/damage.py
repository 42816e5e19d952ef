"""Files of a stage's work that were cut short, by a power cut or a full disk, are removed, and made again next time.

Work that is whole is never looked at: a stage asks after a failure, which may have come of such a file.
"""

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinov2.params import InputError
from dinov2.records import DISK_FULL, UnreadableError
from tasks.fan_out import MADE
from tasks.follow import JobFailedError

log = logging.getLogger(__name__)
KEPT = ("job*", "checkpoints", "out")  # what is no part: others look after these
OPENED: dict[str, Callable[[Path], Any]] = {
    ".parquet": pq.read_metadata,
    ".arrow": lambda path: pa.ipc.open_file(pa.memory_map(str(path))),
    ".npy": lambda path: np.load(path, mmap_mode="r"),
    ".npz": lambda path: zipfile.ZipFile(path).close(),
    ".json": lambda path: json.loads(path.read_text()),
}


@contextmanager
def damage_forgotten(work: Path) -> Iterator[None]:
    """Where the block fails over damaged files of `work`, remove them and raise JobFailedError: it can be tried again.

    Other mistakes, also that a file of somebody else is damaged, pass as they are.
    """
    try:
        yield
    except Exception as error:
        is_mistake = isinstance(error, InputError) and not isinstance(error, UnreadableError)
        if is_mistake or (isinstance(error, OSError) and error.errno in DISK_FULL) or not forget_damaged(work):
            raise
        raise JobFailedError("work of this stage was damaged; start it again", "") from error


def forget_damaged(work: Path) -> list[Path]:
    """Remove the damaged files below a folder of work, and the word of all its parts that they are made."""
    found = list(_damaged(work))
    for path in found:
        log.warning("%s was damaged; it is removed, and made again by the next start", path)
        path.unlink()
    if found:
        shutil.rmtree(work / MADE, ignore_errors=True)
    return found


def _damaged(work: Path) -> Iterator[Path]:
    folders = [path for path in sorted(work.glob("*")) if path.is_dir() and not any(map(path.match, KEPT))]
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if path.suffix in OPENED and path.is_file():
            try:
                OPENED[path.suffix](path)
            except (ValueError, OSError, EOFError, zipfile.BadZipFile):  # pyarrow's and json's are ValueErrors
                yield path
