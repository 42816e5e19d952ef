"""Where long computations were: saved now and then, so that a job that was killed goes on from there.

The first process writes and reads for all, so that all go on from the same state. What is saved is exact, and so is
what is computed: a result does not tell how often it was interrupted, or when it was saved.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dinov2.distributed import rank, world_size

SAVE_EVERY_S = 60.0  # at most this much is computed again

Arrays = dict[str, NDArray[Any]]


class Saved:
    """The computations of a job, each in a file of its own, named by the order in which they begin."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """To be made by all processes, which meet on their `device`."""
        self._folder, self._device, self._num = folder, device, 0

    def next(self) -> "Computation":
        """The next computation of the job; the same one in each start."""
        self._num += 1
        return Computation(self._folder / f"{self._num:02d}.npz", self._device)


class Computation:
    """One computation's last state."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._device = path, device
        self._saved_at = time.monotonic()

    def load(self) -> Arrays | None:
        """What was saved last, if anything was; the same in all processes, which call this together."""
        box: list[Arrays | None] = [None]
        if rank() == 0 and self._path.exists():
            with self._path.open("rb") as stream, np.load(stream) as arrays:  # np.load leaves a damaged file open
                box[0] = dict(arrays)
        if world_size() > 1:
            dist.broadcast_object_list(box, src=0, device=self._device)
        return box[0]

    def save(self, **arrays: Any) -> None:
        """Write the state, if that was not done just before."""
        if rank() > 0 or time.monotonic() - self._saved_at < SAVE_EVERY_S:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        self._saved_at = time.monotonic()
