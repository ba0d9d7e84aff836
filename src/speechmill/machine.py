"""This process on its machine: its cores, the allocator's free memory, its temporary files.

Room in the temporary folder is claimed before it is written to, and counted while it is held. A
process and its decoders count in one ledger; what others take shows in what the folder has free.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
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
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

__all__ = [
    "Claim",
    "FileMap",
    "WithoutRoom",
    "alone",
    "is_no_room",
    "join_ledger",
    "keep_memory",
    "lend_ledger",
    "limit_cores",
    "num_cores",
    "take_back_ledger",
]

T = TypeVar("T")

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

PLACES: Final = 256
"""In a ledger: eight decoders have one, and who forks and decodes has a ledger of its own."""
ENTRY_BYTES: Final = 8

TRIES_ALONE: Final = 2
"""How often what found no room for its temporary files is tried alone: another thread of the
process may have begun a file of its own just before it."""

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


class _Ledger:
    """A file in which each of some processes has, at its place, how many bytes it has claimed and
    not written yet. Without the file it is of this process alone."""

    def __init__(self, fd: int | None = None, place: int = 0) -> None:
        self.fd, self._place = fd, place
        self._lent: set[int] = set()

    @contextmanager
    def closed_to_others(self) -> Iterator[int]:
        """Keep the others from claiming meanwhile. Gives what they have claimed."""
        if self.fd is None:
            yield 0
            return
        fcntl.lockf(self.fd, fcntl.LOCK_EX)  # it goes with the process
        try:
            entries = array("q", os.pread(self.fd, PLACES * ENTRY_BYTES, 0))
            yield sum(count for place, count in enumerate(entries) if place != self._place)
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def enter(self, num_bytes: int, place: int | None = None) -> None:
        """Set what is claimed at a place; at this process's own where none is named."""
        if self.fd is not None:
            place = self._place if place is None else place
            os.pwrite(self.fd, array("q", [num_bytes]).tobytes(), place * ENTRY_BYTES)

    def lend(self) -> int:
        """Give a free place to another process."""
        if self.fd is None:
            self.fd = _file_without_name()
        place = min(set(range(1, PLACES)) - self._lent)
        self._lent.add(place)
        return place

    def take_back(self, place: int) -> None:
        """Have a place back from a process that has ended."""
        self.enter(0, place)
        self._lent.discard(place)


def _file_without_name() -> int:
    """Open one in memory, where there is such: the temporary folder may be full."""
    if sys.platform == "linux":
        return os.memfd_create("speechmill-room")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_ledger = _Ledger()


def lend_ledger() -> tuple[int, int]:
    """A file descriptor and a place, for ``join_ledger`` in a process that is to be started."""
    with _changed:
        place = _ledger.lend()
        return _ledger.fd or 0, place


def join_ledger(fd: int | None = None, place: int = 0) -> None:
    """Count this process's claims together with those of the one that has started it; alone, where
    nothing is given."""
    global _ledger  # noqa: PLW0603 - it is the process's
    _ledger = _Ledger(fd, place)


def take_back_ledger(place: int) -> None:
    """Count no longer what a process had claimed that has ended."""
    with _changed:
        _ledger.take_back(place)


os.register_at_fork(after_in_child=join_ledger)


def _promised() -> int:
    """Bytes that this process has claimed and not written."""
    return sum(share.claimed - share.written for share in list(_shares))


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
            with _changed:
                self._share.written += count
                _ledger.enter(_promised())

    def _claim(self, num_bytes: int, expected: int) -> None:
        share = self._share
        with _changed:
            _shares.add(share)
            more = max(share.written + num_bytes, expected) - share.claimed
            if more <= 0:
                return
            with _ledger.closed_to_others() as claimed:
                free = _free_bytes() - claimed - _promised() - SPARE_BYTES
                if more > free:
                    raise self._no_room(more, free)
                share.claimed += more
                _ledger.enter(_promised())

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


class WithoutRoom(Generic[T]):
    """Work that found no room for its temporary files, until it is tried again, alone."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._tries = 0

    def takes(self, item: T) -> bool:
        """Take what is to be tried again; False where it has been often enough."""
        if self._tries == TRIES_ALONE:
            return False
        self._items.append(item)
        return True

    def try_again(self, work: Callable[[T], object], stop: Callable[[], bool]) -> bool:
        """Do the work again, item by item, while this process holds no other temporary file.

        The caller must hold none. Returns False where ``stop()`` became true first.
        """
        for self._tries in range(1, TRIES_ALONE + 1):
            for _ in range(len(self._items)):
                with alone(stop) as may_begin:
                    if not may_begin:
                        return False
                    work(self._items.popleft())
        return True


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
        _ledger.enter(_promised())
        _changed.notify_all()


def _free_bytes() -> int:
    """Bytes that the temporary folder has free."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
