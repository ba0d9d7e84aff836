"""Ogg: all pages have to be there, whole, and in order (RFC 3533).

FFmpeg drops a page whose checksum is wrong, and says nothing.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise

from speechmill.audio.formats.anatomy import Anatomy, Problem
from speechmill.audio.formats.octets import Octets, starts_with

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
class _Walk:
    links: list[int] = field(default_factory=list)  # where each chained file starts
    expected: dict[int, int] = field(default_factory=dict)  # serial -> next page's number
    open: set[int] = field(default_factory=set)  # serials whose last page has not come
    problem: Problem | None = None
    trailing: bool = False


def inspect_ogg(data: Octets, start: int) -> Anatomy:
    """Check every page, and find where chained files begin."""
    walk = _Walk()
    at, in_header = start, False
    while at < len(data) and walk.problem is None:
        size = _page_size(data, at)
        if size == 0:
            at = _lost(data, at, walk)
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
    return _anatomy(data, start, walk)


def _page_size(data: Octets, at: int) -> int:
    """Bytes of the page at ``at``; beyond the data's end if it is cut; 0 where there is none."""
    if not starts_with(data, b"OggS", at):
        # The first bytes of a page of which no more is there.
        return 27 if b"OggS".startswith(data[at : at + 4]) and len(data) - at < 4 else 0
    if at + 27 > len(data):
        return 27
    segments = data[at + 26]
    if at + 27 + segments > len(data):
        return 27 + segments
    return 27 + segments + sum(data[at + 27 : at + 27 + segments])


def _lost(data: Octets, at: int, walk: _Walk) -> int:
    """Bytes that are no page: damage, unless all streams have ended before."""
    again = data.find(b"OggS", at)
    if again >= 0:
        walk.problem = Problem("damaged", f"bytes {at} to {again} are no Ogg pages")
    elif walk.open:
        walk.problem = Problem("damaged", f"its last {len(data) - at} bytes are no Ogg pages")
    else:
        walk.trailing = True
    return len(data)


def _anatomy(data: Octets, start: int, walk: _Walk) -> Anatomy:
    flags = ("trailing_data",) if walk.trailing else ()
    if walk.problem is None and walk.open:
        flags = ("unknown_length",)  # the page that says "the end" is not there
    links = [*(walk.links or [start]), len(data)]
    return Anatomy("Ogg", "ogg", tuple(pairwise(links)), problem=walk.problem, flags=flags)
