"""Ogg (RFC 3533): check that all pages are there, whole, and in order.

FFmpeg silently drops a page whose checksum is wrong.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise

from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.audio.limits import Meter

__all__ = ["inspect_ogg"]

_HEAD = struct.Struct(
    "<4sBBqIIIB"
)  # magic, version, flags, granule, serial, sequence, crc, segments
_CONTINUED, _FIRST, _LAST = 1, 2, 4
# Ogg's checksum is that of zlib with the bits of every byte, and of the result, turned around.
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checksum(page: bytes) -> int:
    turned = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(turned.to_bytes(4, "little").translate(_MIRROR), "big")


@dataclass(slots=True)
class _PageWalk:
    """The pages followed so far."""

    links: list[int] = field(default_factory=list)  # where each chained file starts
    expected: dict[int, int] = field(default_factory=dict)  # serial -> next page's number
    open: set[int] = field(default_factory=set)  # serials whose last page has not come
    problem: Problem | None = None
    trailing: bool = False


def inspect_ogg(data: Octets, start: int, meter: Meter) -> Structure:
    """Check every page, and find where chained files begin."""
    walk = _PageWalk()
    at, in_header = start, False
    while at < len(data) and walk.problem is None:
        meter.step()
        size = _page_size(data, at)
        if size == 0:
            at = _skip_stray_bytes(data, at, walk)
            continue
        if at + size > len(data):
            walk.problem = Problem("truncated", "its last page is incomplete")
            break
        page = data[at : at + size]
        _, _, flags, _, serial, sequence, crc, _ = _HEAD.unpack_from(page)
        if flags & _FIRST and not in_header:
            walk.links.append(at)
            walk.expected.clear()
        in_header = bool(flags & _FIRST)
        if crc != _checksum(page[:22] + bytes(4) + page[26:]):
            walk.problem = Problem("damaged", f"the checksum of the page at byte {at} is wrong")
        elif not flags & _FIRST and walk.expected.get(serial, sequence) != sequence:
            walk.problem = Problem("damaged", f"pages are missing before byte {at}")
        walk.expected[serial] = sequence + 1
        (walk.open.discard if flags & _LAST else walk.open.add)(serial)
        at += size
    return _structure(data, start, walk)


def _page_size(data: Octets, at: int) -> int:
    """Size of the page at ``at`` in bytes, also where the data ends before it; 0 for no page."""
    if not starts_with(data, b"OggS", at):
        # The data may end within the first four bytes of a page.
        return 27 if b"OggS".startswith(data[at : at + 4]) and len(data) - at < 4 else 0
    if at + 27 > len(data):
        return 27
    segments = data[at + 26]
    if at + 27 + segments > len(data):
        return 27 + segments
    return 27 + segments + sum(data[at + 27 : at + 27 + segments])


def _skip_stray_bytes(data: Octets, at: int, walk: _PageWalk) -> int:
    """Judge bytes that are no page: damage, unless all streams have ended. Returns the end."""
    again = data.find(b"OggS", at)
    if again >= 0:
        walk.problem = Problem("damaged", f"bytes {at} to {again} are no Ogg pages")
    elif walk.open:
        walk.problem = Problem("damaged", f"its last {len(data) - at} bytes are no Ogg pages")
    else:
        walk.trailing = True
    return len(data)


def _structure(data: Octets, start: int, walk: _PageWalk) -> Structure:
    flags = ("trailing_data",) if walk.trailing else ()
    if walk.problem is None and walk.open:
        flags = ("unknown_length",)  # the page that says "the end" is not there
    links = [*(walk.links or [start]), len(data)]
    return Structure(
        "Ogg",
        "ogg",
        tuple(Piece(*span) for span in pairwise(links)),
        problem=walk.problem,
        flags=flags,
    )
