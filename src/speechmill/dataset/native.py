"""What Arrow's own threads are given: as little of Python as can be.

They outlive what they worked for, and the interpreter. One that asks for Python's lock while the
interpreter ends is ended by it in the midst of C++: the process aborts ("terminate called without
an active exception"), or waits for that thread for ever. Letting go of a ``bytes`` takes the lock.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pyarrow import acero

from speechmill.errors import JobError, UnavailableError

__all__ = ["called_by_arrow", "file_of", "kept", "matching"]

QUIET_S = 1.0
"""Without a call: no reading goes on. Arrow does not say when one that was let go of has ended;
with 0.2 s one still went on, where eight processes at once had two busy cores."""
LONGEST_WAIT_S = 30.0  # at the end, for a part that is being fetched
KEPT = 64  # file systems: those that a reading may still go on in, and some more

_kept: deque[pafs.PyFileSystem] = deque(maxlen=KEPT)


def file_of(data: bytes) -> pa.BufferReader:
    """Copy bytes into Arrow's own memory, as a file that any thread may let go of."""
    memory = pa.allocate_buffer(len(data))
    pa.FixedSizeBufferWriter(memory).write(data)
    return pa.BufferReader(memory)


def matching(table: pa.Table, where: pc.Expression) -> pa.Table:
    """The rows that fulfil a condition, in their order, computed by this thread alone.

    ``Table.filter`` has Arrow's threads do it, and columns may be views of numpy's memory.

    Raises:
        JobError: the rows cannot be asked that.
    """
    rows = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    chosen = acero.Declaration("filter", acero.FilterNodeOptions(where), inputs=[rows])
    try:
        return chosen.to_table(use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise JobError(f"the condition {where} does not fit the rows: {reason}") from None


def kept(handler: pafs.FileSystemHandler) -> pafs.PyFileSystem:
    """Make a file system of a handler, and keep it, so that no thread of Arrow is the last to let
    go of it."""
    _kept.append(pafs.PyFileSystem(handler))
    return _kept[-1]


class _Calls:
    """The calls that Arrow's threads have made into Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._last_s = -QUIET_S  # by the monotonic clock
        self._ending = False

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            if self._ending:
                self._last_s = time.monotonic()
                raise UnavailableError("nothing is read any more: the program is at its end")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._last_s = time.monotonic()

    def end(self) -> None:
        """Refuse new calls, which ends the readings, and wait for those that are on their way."""
        self._ending = True
        last_s = time.monotonic() + LONGEST_WAIT_S
        while (now_s := time.monotonic()) < last_s and (
            self._running or now_s - self._last_s < QUIET_S
        ):
            time.sleep(QUIET_S / 50)


_calls = _Calls()
called_by_arrow = _calls.one
atexit.register(_calls.end)
