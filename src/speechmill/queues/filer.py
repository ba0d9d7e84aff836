"""Parse events of SeaweedFS' filer, as it publishes them to a queue: protobuf, keyed by the path.

Only a few fields of the message ``EventNotification`` (``weed/pb/filer.proto``) are used, so they
are read by the wire format's rules (https://protobuf.dev/programming-guides/encoding/); the
library would want the whole schema compiled into this package.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FilerEvent", "read_filer_event"]

OLD_ENTRY, NEW_ENTRY, NEW_PARENT_PATH = 1, 2, 4  # fields of EventNotification
NAME, IS_DIRECTORY = 1, 2  # fields of Entry
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_BITS = 64  # of a varint


@dataclass(frozen=True, slots=True)
class FilerEvent:
    """The path of a file that was created or changed, and of one that was removed; "" for none."""

    created: str = ""
    removed: str = ""


def read_filer_event(path: str, body: bytes) -> FilerEvent:
    """Parse an event with the key ``path``. Directories are ignored.

    Raises:
        ValueError: the body is no such message.
    """
    fields = dict(_fields(body))
    old, new = (_entry(fields.get(number)) for number in (OLD_ENTRY, NEW_ENTRY))
    if old is None and new is None:
        raise ValueError("there is no entry in it")
    directory = _text(fields.get(NEW_PARENT_PATH, b"")) or posixpath.dirname(path)
    created = f"{directory}/{new[0]}" if new and not new[1] else ""
    removed = path if old and not old[1] and created != path else ""
    return FilerEvent(created, removed)


def _entry(data: bytes | int | None) -> tuple[str, bool] | None:
    """Parse an entry: its name, and whether it is a directory."""
    if data is None:
        return None
    if isinstance(data, int):
        raise ValueError("an entry is no message")  # noqa: TRY004 - the data's fault
    fields = dict(_fields(data))
    return _text(fields.get(NAME, b"")), bool(fields.get(IS_DIRECTORY, 0))


def _text(data: bytes | int) -> str:
    if isinstance(data, int):
        raise ValueError("a text is a number")  # noqa: TRY004 - the data's fault
    return data.decode("utf-8", "surrogateescape")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a message: their numbers and values."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: bytes | int
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
            value, at = data[at : at + length], at + length
        elif kind == BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"there is no wire type {kind}")
        if at > len(data) or not number:
            raise ValueError("it ends too early")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number in groups of seven bits, the lowest first. Also returns where it ends."""
    value = shift = 0
    while at < len(data) and shift < MAX_BITS:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("it ends too early")
