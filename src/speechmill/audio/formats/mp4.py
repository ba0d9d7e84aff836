"""MP4, M4A, MOV and 3GP: the last box must end within the file, and all sound be in the index."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from speechmill.audio.formats.octets import Octets, Span
from speechmill.audio.formats.sizes import rest_flags
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, TruncatedError

__all__ = ["inspect_mp4"]

# FFmpeg's name of the demuxer for all of ISO 14496-12 and QuickTime.
_MP4_DEMUXER = "mov,mp4,m4a,3gp,3g2,mj2"
_TOP_BOXES = {
    b"ftyp",
    b"styp",
    b"moov",
    b"moof",
    b"mdat",
    b"mfra",
    b"free",
    b"skip",
    b"wide",
    b"pnot",
    b"uuid",
    b"udta",
    b"meta",
    b"sidx",
    b"ssix",
    b"prft",
    b"emsg",
    b"pdin",
}
_BRANCHES = {b"trak", b"mdia", b"minf", b"stbl"}  # boxes of the index that hold boxes
_DESCRIPTION_BYTES = 128  # of a track: as many as tell the form of plain samples
# Plain samples: their bytes, or 0 where the number of bits tells.
_WIDTHS = {
    **dict.fromkeys((b"sowt", b"twos", b"raw ", b"NONE", b"lpcm"), 0),
    **dict.fromkeys((b"in32", b"fl32"), 4),
    **dict.fromkeys((b"ulaw", b"alaw"), 1),
    b"in24": 3,
    b"fl64": 8,
}
_MAX_SLACK = 1024  # bytes of sound that no track has: alignment, or a packet that was dropped


@dataclass(slots=True)
class _Walk:
    """The boxes at the top that were followed so far."""

    seen: set[bytes] = field(default_factory=set)
    index: Span = (0, 0)
    sound_bytes: int = 0
    end: int = 0
    behind: int | None = None  # where another file starts
    trailing: bool = False
    problem: Problem | None = None


def inspect_mp4(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Check the boxes at the top of an MP4, M4A, MOV or 3GP file (ISO 14496-12) at ``start``, and
    find where another one starts behind it."""
    walk = _follow(data, start, meter)
    if b"moov" not in walk.seen:
        raise TruncatedError("the MP4 file's index (its moov box) is missing: the end was cut off")
    flags: tuple[str, ...] = ()
    in_fragments = b"moof" in walk.seen
    if walk.problem is None:
        flags = ("unknown_length",) * (in_fragments and b"mfra" not in walk.seen)
        flags += rest_flags(data, walk.end) * walk.trailing
        if not in_fragments and _unindexed_bytes(data, walk) > _MAX_SLACK:
            flags += ("trailing_data",)
    structure = Structure(
        "MP4",
        _MP4_DEMUXER,
        (Piece(start, len(data) if walk.behind is None else walk.behind),),
        problem=walk.problem,
        flags=tuple(sorted(set(flags))),
        packet_clock=True,
        has_start=not in_fragments,
    )
    return structure, walk.behind


def _follow(data: Octets, start: int, meter: Meter) -> _Walk:
    walk, at = _Walk(), start
    while at + 8 <= len(data):
        meter.step()
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if {b"moov", b"mdat"} <= walk.seen:
            if name == b"ftyp":
                walk.behind = at
                break
            if name not in _TOP_BOXES:
                if data.find(b"moof", at) >= 0:
                    text = f"there is no valid box at byte {at - start}"
                    walk.problem = Problem("damaged", text)
                walk.trailing = True
                break
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = len(data) - at
        walk.seen.add(name)
        if size < 8:
            walk.problem = Problem("damaged", f"the box at byte {at - start} has no size")
            break
        if at + size > len(data):
            text = f"it ends inside its {name.decode('latin-1')!r} box"
            walk.problem = Problem("truncated", text)
            break
        if name == b"moov":
            walk.index = at + 8, at + size
        walk.sound_bytes += size - 8 if name == b"mdat" else 0
        at += size
    walk.end = at
    stopped = walk.trailing or walk.behind is not None or walk.problem is not None
    if not stopped and any(data[at:]):
        walk.problem = Problem("truncated", "it ends inside the head of a box")
    return walk


def _unindexed_bytes(data: Octets, walk: _Walk) -> int:
    """Count the bytes of sound and pictures that no track has; 0 if the index does not say.

    Raises DamagedError where the index and the description of plain samples disagree.
    """
    (at, end), indexed = walk.index, 0
    blocks: tuple[int, ...] = ()  # of the plain samples of a track
    is_sound = False
    while at + 8 <= end:
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name in _BRANCHES:
            if name == b"trak":
                blocks, is_sound = (), False
            at += 8
            continue
        if name == b"stz2" or size < 8:
            return 0
        is_sound |= name == b"smhd"
        if name == b"stsd" and is_sound:
            blocks = _plain_blocks(data[at + 16 : min(end, at + min(size, _DESCRIPTION_BYTES))])
        elif name == b"stsz":
            each, count = struct.unpack(">II", data[at + 12 : at + 20].ljust(8, b"\0"))
            if each == 1:  # QuickTime's way with plain samples, whatever their width
                return 0
            if each and blocks and each not in blocks:
                raise DamagedError(
                    f"the MP4 file's index has samples of {each} bytes, and its description of "
                    f"{blocks[0]}: they disagree about their width or channels"
                )
            sizes = data[at + 20 : min(end, at + 20 + 4 * count)]
            table = np.frombuffer(sizes, ">u4", len(sizes) // 4)
            indexed += each * count or int(table.sum(dtype=np.uint64))
        at += size
    return walk.sound_bytes - indexed


def _plain_blocks(entry: bytes) -> tuple[int, ...]:
    """Bytes of a sample of all channels, as a track's first description states its width, and of
    one channel, which some indexes have instead; nothing where its samples are not plain.

    Raises DamagedError where it states another number besides.
    """
    if len(entry) < 36 or entry[4:8] not in _WIDTHS:
        return ()
    version, channels, bits = (int.from_bytes(entry[at : at + 2], "big") for at in (16, 24, 26))
    stated = 0
    if version == 1 and len(entry) >= 52:
        stated = int.from_bytes(entry[44:48], "big")
    elif version == 2 and len(entry) >= 72:
        channels, _, bits, _, stated, frames = struct.unpack_from(">6I", entry, 48)
        stated //= frames or 1
    width = _WIDTHS[entry[4:8]] or -(-bits // 8)
    block = channels * width
    if stated and stated != block:
        raise DamagedError(
            f"the fields of the MP4 file's description of its samples disagree: {stated} bytes for "
            f"{channels} channels of {bits} bits"
        )
    return block, width
