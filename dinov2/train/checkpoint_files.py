"""The files of a checkpoint: written through to the disk, each of the length it should have, or an OSError."""

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from dinov2.distributed import world_size
from dinov2.records import DISK_FULL
from dinov2.train.staging import State

METADATA = ".metadata"  # torch.distributed.checkpoint's own list of what lies where


class _Writer(FileSystemWriter):
    """As torch's, but what the disk answered is told: torch's archives turn it into "unexpected pos 704 vs 598"."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(self.path)) from error
            raise


def write_state(state: State, folder: Path, group: dist.ProcessGroup | None) -> dict[str, int]:
    """Write every process's part of `state`, flushed to the disk; returns the length of each part's file in bytes.

    To be called by all processes together. Raises OSError, on all of them, where one of them could not write.
    """
    try:
        metadata = state_dict_saver.save(
            state, storage_writer=_Writer(folder), process_group=group, no_dist=world_size() == 1
        )
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        told = [cause for cause in causes if isinstance(cause, OSError)]
        full = [cause for cause in told if cause.errno in DISK_FULL]
        raise (full or told or causes)[0] from error
    sizes: dict[str, int] = {}
    for item in metadata.storage_data.values():
        sizes[item.relative_path] = max(sizes.get(item.relative_path, 0), item.offset + item.length)
    return sizes


def trouble_with(folder: Path, about: str) -> str | None:
    """Why a checkpoint can't be used: a file that is missing or not of the length written in `about`; None if sound."""
    try:
        sizes = json.loads((folder / about).read_text())["bytes"]
    except (OSError, ValueError, KeyError) as error:
        return f"{about} can't be read: {error}"
    for name, num_bytes in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes, not {num_bytes}"
    return None


def flush_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

