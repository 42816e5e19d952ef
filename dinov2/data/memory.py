"""Memory of batches, used again when nobody holds it any more.

A batch of crops is so large that the C library asks the system for its memory and gives it back, batch after batch; the
system then hands it out page by page, zeroed. That costs a CPU as much as blurring the crops.
"""

import sys
import threading
from collections import defaultdict
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT_BYTES = 30 * 2**20  # glibc takes no more than 32 MiB
UNUSED = 2  # references to memory that no tensor uses: the list below and the question itself


class Recycled:
    """Gives uninitialised CPU tensors. May be used by several threads; holds what was in use at once at most."""

    def __init__(self) -> None:
        self._pieces: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor whose memory no other living tensor has, views included."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            pieces = self._pieces[num_bytes]
            for number in range(len(pieces)):
                if sys.getrefcount(pieces[number]) == UNUSED:  # the storage of a living tensor refers to it
                    return _tensor(pieces[number], shape, dtype)
            pieces.append(np.empty(num_bytes, dtype=np.uint8))
            return _tensor(pieces[-1], shape, dtype)


def keep_small_blocks() -> None:
    """Make the C library keep what is freed in smaller blocks too: it does so up to the largest block that was freed.

    That is how glibc adapts itself (M_MMAP_THRESHOLD in its manual); elsewhere this does nothing.
    """
    np.empty(KEPT_BYTES, dtype=np.uint8)


def _tensor(piece: NDArray[np.uint8], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(piece).view(dtype).view(shape)


BATCHES = Recycled()
"""Of this process."""
