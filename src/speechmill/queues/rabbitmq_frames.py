"""Frames of AMQP, of which pika cannot read all that a broker lets through."""

from __future__ import annotations

import struct
from typing import Any, Final

from pika import BasicProperties, SelectConnection
from pika.frame import Header
from pika.spec import FRAME_END, FRAME_END_SIZE, FRAME_HEADER, FRAME_HEADER_SIZE

__all__ = ["TolerantConnection", "without_properties"]

_PREFIX: Final = struct.Struct(">BHL")  # type, channel, bytes of what follows
_CONTENT: Final = struct.Struct(">HHQ")  # class, weight, bytes of the body


class TolerantConnection(SelectConnection):  # type: ignore[misc] # it has no types
    """A connection that takes a message whose headers pika cannot read as one that has none.

    They are the publisher's: a time in the year 292,277,026,596, tables within tables without end.
    What pika raises over them ends the connection; the broker then delivers the message again, and
    the next connection ends as well, for ever.
    """

    def _read_frame(self) -> Any:
        try:
            return super()._read_frame()
        except Exception:  # whatever it is: OverflowError, RecursionError, struct.error, …
            frame = without_properties(self._frame_buffer)
            if frame is None:  # not of a message: the broker or the network is at fault
                raise
            return frame


def without_properties(octets: bytes) -> tuple[int, Header] | None:
    """The frame that announces a message's body, at the beginning of ``octets``, with properties
    that say nothing; and its length. None where something else is there."""
    kind, channel, num_bytes = _PREFIX.unpack_from(octets)
    length = FRAME_HEADER_SIZE + num_bytes + FRAME_END_SIZE
    if kind != FRAME_HEADER or num_bytes < _CONTENT.size or octets[length - 1] != FRAME_END:
        return None
    _, _, body_bytes = _CONTENT.unpack_from(octets, FRAME_HEADER_SIZE)
    return length, Header(channel, body_bytes, BasicProperties())
