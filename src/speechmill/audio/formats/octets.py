"""A file's bytes, in memory or mapped: read in place, never copied whole."""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable

__all__ = ["Octets", "Span", "SpanReader", "only_zeros", "starts_with"]

Octets = bytes | mmap.mmap
"""A whole file. A slice of it is a copy: only for headers, frames and the like."""

Span = tuple[int, int]
"""Part of a file: its first byte, and the one behind its last."""

_SCAN_BYTES = 1 << 20  # copied at a time


def starts_with(data: Octets, prefixes: bytes | tuple[bytes, ...], at: int = 0) -> bool:
    """Whether one of the prefixes is at ``at``; ``bytes.startswith``, which maps do not have."""
    longest = len(prefixes) if isinstance(prefixes, bytes) else max(map(len, prefixes))
    return data[at : at + longest].startswith(prefixes)


def only_zeros(data: Octets, start: int = 0) -> bool:
    """Whether every byte from ``start`` on is zero."""
    starts = range(start, len(data), _SCAN_BYTES)
    return not any(data[at : at + _SCAN_BYTES].strip(b"\x00") for at in starts)


class SpanReader(io.RawIOBase):
    """Part of a file behind a ``head`` of its own, as a read-only file object.

    ``before_read`` is called before each read; what it raises ends the reading.
    """

    def __init__(
        self,
        data: Octets,
        span: Span,
        before_read: Callable[[], None] | None = None,
        head: bytes = b"",
    ) -> None:
        super().__init__()
        self._before_read = before_read
        self._data, self._head = data, head
        self._first, self._end = span
        self._start = self._at = self._first - len(head)  # as if it came right before

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def tell(self) -> int:
        """See ``io.RawIOBase``."""
        return self._at - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See ``io.RawIOBase``."""
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = max(self._start, base + offset)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        """See ``io.RawIOBase``; at its end nothing comes."""
        if self._before_read is not None:
            self._before_read()
        end = self._end if size < 0 else min(self._end, self._at + size)
        octets = self._data[max(self._at, self._first) : max(self._at, self._first, end)]
        if self._at < self._first:
            octets = self._head[self._at - self._start : max(0, end - self._start)] + octets
        self._at += len(octets)
        return octets
