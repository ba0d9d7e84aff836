"""How the C library treats memory that is free: it is kept for the next batch.

Whisper's buffers are some megabytes each. glibc gives such memory back to the system as soon as it
is free, and gets it anew for the next layer: page faults, some 7 % of the processor time.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

__all__ = ["keep_memory"]

# Numbers of glibc's malloc.h.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8

KEPT_BYTES: Final = 2**30  # free at the end of the heap, at most
LARGE_BYTES: Final = 2**28  # what is larger, such as a long recording, goes back at once


def keep_memory() -> None:
    """Have free memory kept, up to a gigabyte, in one heap for all threads: heaps of threads are of
    64 MB at most, which is too little. It is a setting of the whole process. Does nothing where the
    C library is not glibc."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
