"""Memory that is freed is kept and used again, where the C library would give it back to the system.

glibc maps every large tensor anew and gives it back when it is freed; the system then hands it out page by page,
zeroed. A training step on a CPU spends up to a quarter of its time on that (benchmarks/train_step.py --keep-heap), and
a batch costs as much as blurring its crops (benchmarks/data_path.py). The price: memory of an earlier peak stays.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = (2**30, 2**25)  # the largest piece that is kept; older libraries take no more than the second
NEVER_BYTES = 2**31 - 1


def keep_heap() -> bool:
    """Keep freed memory for later in this process; returns whether the C library can (glibc only)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    keeps = any(mallopt(M_MMAP_THRESHOLD, size) for size in KEPT_BYTES)
    return keeps and bool(mallopt(M_TRIM_THRESHOLD, NEVER_BYTES))
