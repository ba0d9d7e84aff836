"""This process on its machine: its cores, the allocator's free memory, its temporary files.

Room in the temporary folder is claimed before it is written to, and counted while it is held. The
count is this process's own: what another process takes shows in what the folder has free.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import math
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["Claim", "FileMap", "alone", "is_no_room", "keep_memory", "limit_cores", "num_cores"]

CGROUP = Path("/sys/fs/cgroup")

# Parameters of mallopt, as in glibc's malloc.h.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8

KEPT_BYTES: Final = 2**30  # free memory kept at the end of the heap, at most: a batch's buffers
LARGE_BYTES: Final = 2**28  # larger blocks, such as a long recording, are returned at once

SPARE_BYTES: Final = 64 << 20
"""Never claimed, so that what else is written to the folder, as logs and parts, has room."""

STILL_S: Final = 600.0
"""After so long without a change, whoever waits to be alone goes on: what is still held then
belongs to a caller that keeps it, and will not be let go of."""

TICK_S: Final = 0.2

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


@dataclass(slots=True, eq=False)
class _Share:
    claimed: int = 0
    written: int = 0


_changed: Final = threading.Condition()  # its lock may be taken again by the thread that has it
_shares: Final[set[_Share]] = set()
_turn: Final = threading.Lock()


class Claim:
    """The room that one temporary file takes, until ``release``, or until nothing refers to it.

    Not for several threads at once.

    Args:
        held: bytes that a file of another process has already; 0 for one that may come to be.
    """

    def __init__(self, held: int | None = None) -> None:
        self._share = _Share(held or 0, held or 0)
        if held is not None:
            with _changed:
                _shares.add(self._share)
        self.release: Final = weakref.finalize(self, _release, self._share)

    def keep_for(self, what: Any) -> None:
        """Release the room when ``what`` is gone, such as a map of the file."""
        weakref.finalize(what, _end, self)

    def write(self, file: io.FileIO, octets: memoryview | bytes, expected: int = 0) -> None:
        """Write to the file, after room has been claimed for it.

        Args:
            file: it has no buffer.
            octets: what is written.
            expected: bytes that the file is to have in the end, as far as is known. They are
                claimed at once, so that no file is begun that cannot be finished.

        Raises:
            OSError: there is no room (``is_no_room``), or the folder cannot be written to.
        """
        rest = memoryview(octets)
        self._claim(len(rest), expected)
        while rest:
            try:
                count = file.write(rest)
            except OSError as error:
                if is_no_room(error):
                    raise self._no_room(len(rest), _free_bytes()) from None
                raise
            rest = rest[count:]
            self._share.written += count

    def _claim(self, num_bytes: int, expected: int) -> None:
        share = self._share
        with _changed:
            _shares.add(share)
            more = max(share.written + num_bytes, expected) - share.claimed
            if more <= 0:
                return
            promised = sum(other.claimed - other.written for other in list(_shares))
            free = _free_bytes() - promised - SPARE_BYTES
            if more > free:
                raise self._no_room(more, free)
            share.claimed += more

    def _no_room(self, more: int, free: int) -> OSError:
        text = (
            f"it needs {_gigabytes(self._share.claimed + more)}, has "
            f"{_gigabytes(self._share.claimed)}, and {_gigabytes(max(0, free))} are free"
        )
        return OSError(errno.ENOSPC, text)


def is_no_room(error: OSError) -> bool:
    """Whether there is no room, now: there may be some when other files are gone."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def alone(stop: Callable[[], bool]) -> Iterator[bool]:
    """Wait until this process holds no temporary file, one waiting thread after the other.

    The caller must hold no file while it waits. Gives False where ``stop()`` became true first.
    """
    while not _turn.acquire(timeout=TICK_S):
        if stop():
            yield False
            return
    try:
        yield _wait_for_others(stop)
    finally:
        _turn.release()


def _wait_for_others(stop: Callable[[], bool]) -> bool:
    gc.collect()  # of files in cycles that nothing refers to
    seen, since = set(_shares), time.monotonic()
    with _changed:
        while _shares and time.monotonic() - since < STILL_S:
            if stop():
                return False
            _changed.wait(TICK_S)
            if seen != _shares:
                seen, since = set(_shares), time.monotonic()
    return not stop()


def _end(claim: Claim) -> None:
    claim.release()


def _release(share: _Share) -> None:
    with _changed:
        _shares.discard(share)
        _changed.notify_all()


def _free_bytes() -> int:
    """Bytes that the temporary folder has free."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
