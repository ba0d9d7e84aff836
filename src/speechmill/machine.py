"""This process on its machine: its cores, the allocator's free memory, and maps of files."""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import sys
from pathlib import Path
from typing import Final, Self

__all__ = ["FileMap", "keep_memory", "limit_cores", "num_cores"]

CGROUP = Path("/sys/fs/cgroup")

# Parameters of mallopt, as in glibc's malloc.h.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8

KEPT_BYTES: Final = 2**30  # free memory kept at the end of the heap, at most: a batch's buffers
LARGE_BYTES: Final = 2**28  # larger blocks, such as a long recording, are returned at once

_limit: int | None = None


def num_cores() -> int:
    """Count the cores that this process may use, at least 1.

    It is the least of its CPU affinity, its container's quota and the limit set.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(n for n in (allowed or 1, _quota(), _limit) if n is not None))


def limit_cores(count: int | None) -> None:
    """Limit this process to ``count`` cores from now on; None for no limit.

    It is for workers that share a machine. Pools that have started their threads keep them.
    """
    global _limit  # noqa: PLW0603 - it is the process's
    _limit = count


def _quota() -> int | None:
    """Read the container's CPU quota (cgroup v2, v1) in cores, rounded up; None without one."""
    v2, v1 = CGROUP / "cpu.max", CGROUP / "cpu"
    try:
        if v2.exists():
            words = v2.read_text().split()
        else:
            words = [(v1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
        quota, period = int(words[0]), int(words[1])
    except (OSError, IndexError, ValueError):  # "max": no quota
        return None
    return math.ceil(quota / period) if quota > 0 and period > 0 else None


def keep_memory() -> None:
    """Keep free memory for the next batch, up to a gigabyte, in one heap for all threads.

    It is a setting of the whole process, and does nothing where the C library is not glibc.
    Whisper's buffers are some megabytes each: glibc returns such memory to the system as soon as it
    is free, and gets it anew for the next layer. The page faults cost 7 % of the processor time of
    transcription on two threads, and a tenth more memory at the peak. Heaps of single threads hold
    64 MB at most, which is too little.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


class FileMap(mmap.mmap):
    """A read-only map of a whole file, with the file, so that another process can map it, too.

    Args:
        fd: the open file. It may be closed afterwards.
    """

    file: io.FileIO

    def __new__(cls, fd: int) -> Self:
        """Map it.

        Raises:
            OSError, ValueError: it cannot be mapped; it is empty.
        """
        made = super().__new__(cls, fd, 0, access=mmap.ACCESS_READ)
        made.file = io.FileIO(os.dup(fd))
        return made
