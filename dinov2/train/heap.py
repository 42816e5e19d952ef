"""Memory of a process that trains on a CPU: freed tensors' pages are used again rather than given back.

glibc maps every large tensor anew and gives it back when it is freed, so that a training step spends up to a quarter of
its time on page faults (benchmarks/train_step.py --keep-heap). The price is that memory of an earlier peak stays.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT_BYTES = 2**30
NEVER_BYTES = 2**31 - 1


def keep_heap() -> bool:
    """Keep freed memory for the next step; returns whether the C library can (glibc only)."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER_BYTES))
