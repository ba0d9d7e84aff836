"""Chunks of IFF-like files (RIFF, AIFF), also where writers have left out their padding."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.sample_format import Order

__all__ = [
    "FORM",
    "MAX_CHUNKS",
    "RIFF_MAGICS",
    "Chunk",
    "ChunkAt",
    "iff_chunk",
    "is_name",
    "only_chunks",
]

RIFF_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
FORM = b"FORM"
MAX_CHUNKS = 10_000
"""A file of empty chunks would take for ever."""

_MAX_BEHIND = 100  # chunks behind the samples: it is asked of each place where these may be

# Chunks of files of speech, of RIFF and of AIFF. Others are followed as well, but only where they
# end within the file.
# fmt: off
_KNOWN = {
    b"fmt ", b"fact", b"data", b"LIST", b"slnt", b"JUNK", b"junk", b"PAD ", b"FLLR", b"filr",
    b"bext", b"iXML", b"axml", b"chna", b"ubxt", b"cue ", b"plst", b"labl", b"ltxt", b"note",
    b"smpl", b"inst", b"acid", b"strc", b"cart", b"levl", b"mext", b"MEXT", b"PEAK", b"DISP",
    b"afsp", b"umid", b"minf", b"elm1", b"regn", b"_PMX", b"id3 ", b"ID3 ", b"ds64", b"link",
    b"COMM", b"SSND", b"FVER", b"NAME", b"AUTH", b"(c) ", b"ANNO", b"MARK", b"INST", b"COMT",
    b"MIDI", b"AESD", b"APPL", b"CHAN", b"SAUR", b"basc", b"trns", b"cate",
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk's name, the place and size of its body, and where the next one starts."""

    name: bytes
    body: int
    size: int
    next: int


ChunkAt = Callable[[Octets, int, Order], Chunk | None]
"""(data, position, byte order) -> the chunk that is there, None where there is none."""


def is_name(name: bytes) -> bool:
    """Whether four bytes may be the name of a chunk."""
    return len(name) == 4 and name.isascii() and name.decode("ascii").isprintable()


def iff_chunk(data: Octets, at: int, order: Order) -> Chunk | None:
    """Read the head of a chunk of RIFF or AIFF; None where there is none."""
    name, body = data[at : at + 4], at + 8
    if len(data) < body or not is_name(name):
        return None
    (size,) = struct.unpack_from(f"{order}I", data, at + 4)
    end = body + size
    if name not in _KNOWN and end > len(data) + 1:
        return None
    # Some writers leave out the padding byte.
    unpadded = data[end : end + 4] in _KNOWN or starts_with(data, (*RIFF_MAGICS, FORM), end)
    return Chunk(name, body, size, end + (size & 1 and not unpadded))


def only_chunks(data: Octets, at: int, order: Order) -> bool:
    """Whether further chunks, and no samples, fill the file from ``at`` to its end."""
    for _ in range(_MAX_BEHIND):
        chunk = iff_chunk(data, at, order)
        if chunk is None:
            return 0 <= at - len(data) <= 1
        at = chunk.next
    return False
