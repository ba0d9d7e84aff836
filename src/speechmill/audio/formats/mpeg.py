"""Streams of bare frames (MP3, MP2, AAC in ADTS, AMR), followed to their last byte.

FFmpeg skips what it cannot read and says nothing, so that a damaged file comes out shorter. Here
the headers are followed from frame to frame. Frame headers: ISO 11172-3 (MPEG audio), ISO 13818-7
(ADTS), RFC 4867 section 5 (AMR); the Xing, Info and VBRI headers by common use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import EmptyAudioError, NotAudioError

__all__ = [
    "AMR_MAGICS",
    "adts_length",
    "amr_pauses",
    "first_frame",
    "inspect_aac",
    "inspect_amr",
    "inspect_mp3",
    "is_trailing_tag",
    "mpeg_length",
    "skip_id3",
]

_SEARCH_BYTES = 1 << 17  # how far into the file the first frame is searched for
_MIN_FRAMES = 4  # in a row: no accident
# Unknown bytes tolerated before the first or behind the last frame, such as tags; more is damage.
_MAX_STRAY_BYTES = 4096
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBPS = {
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
AMR_MAGICS = (b"#!AMR\n", b"#!AMR-WB\n")
_AMR_NB = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
_AMR_WB = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)
_AMR_FRAME_S = 0.02
_AMR_LOOK_EVERY = 1024  # frames, which may have a single byte each
# Frame types of pauses (DTX): the noise's description (SID), and nothing at all (NO_DATA).
_AMR_PAUSES = {False: (8, 15), True: (9, 15)}
_AMR_GOOD = 0x04  # the bit that says that a frame arrived whole

FrameLength = Callable[[Octets, int], int]
"""(data, position) -> bytes of the frame whose header is there, 0 where there is none."""


@dataclass(slots=True)
class _FrameWalk:
    """Frames followed from header to header; ``end`` is where the last whole one ends.

    ``parts`` are files joined end to end, as [start, end, number of frames].
    """

    end: int
    parts: list[list[int]] = field(default_factory=list)
    problem: Problem | None = None
    tail_only: bool = False  # the problem is one of the bytes behind the last frame

    @property
    def frames(self) -> int:
        """Whole frames in all parts."""
        return sum(frames for _, _, frames in self.parts)


@cache
def _mpeg_header(second: int, third: int) -> tuple[int, int, int]:
    """Read the bytes, samples and sample rate of a frame from its header's 2nd and 3rd byte."""
    version, layer = second >> 3 & 3, second >> 1 & 3
    kbps_index, rate_index = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer in {0, 3} or rate_index == 3:
        return 0, 0, 0
    if kbps_index in {0, 15}:  # free format and forbidden
        return 0, 0, 0
    full = version == 3
    rate = _RATES[version][rate_index]
    samples = 1152 if layer == 2 or full else 576
    kbps = _KBPS[full, layer][kbps_index]
    return samples * 125 * kbps // rate + (third >> 1 & 1), samples, rate


def mpeg_length(data: Octets, at: int) -> int:
    """Bytes of the MPEG audio frame (layer II or III) at ``at``, 0 where there is none."""
    if at + 4 > len(data) or data[at] != 0xFF:
        return 0
    return _mpeg_header(data[at + 1], data[at + 2])[0]


def adts_length(data: Octets, at: int) -> int:
    """Bytes of the ADTS frame at ``at``, 0 where there is none."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return 0
    if data[at + 2] >> 2 & 15 > 12:
        return 0
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return length if length > 7 else 0


def skip_id3(data: Octets, at: int) -> int:
    """Where the ID3v2 tags that start at ``at`` end; ``at`` if there is none."""
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    return at


def _frames_follow(data: Octets, at: int, length: FrameLength, want: int = _MIN_FRAMES) -> bool:
    for _ in range(want):
        step = length(data, at)
        if not step:
            return False
        at += step
    return True


def _find_frames(
    data: Octets, at: int, stop: int, length: FrameLength, meter: Meter | None = None
) -> int:
    """Find where the next frames in a row start; −1 where there are none before ``stop``."""
    at = data.find(b"\xff", at, stop)
    while at >= 0:
        if meter is not None:
            meter.step(0)
        if _frames_follow(data, at, length):
            return at
        at = data.find(b"\xff", at + 1, stop)
    return -1


def first_frame(data: Octets, start: int) -> tuple[Literal["mp3", "aac"], int] | None:
    """Find the kind of stream and the position of the first of several frames in a row."""
    lengths: tuple[tuple[Literal["mp3", "aac"], FrameLength], ...] = (
        ("mp3", mpeg_length),
        ("aac", adts_length),
    )
    for kind, length in lengths:
        at = start
        while step := length(data, at):  # a short file: frames to its very end
            at += step
            if at > start + 8 * 8192:
                break
        if at > start and (
            at >= len(data) or _frames_follow(data, start, length) or is_trailing_tag(data, at)
        ):
            return kind, start
    for kind, length in lengths:
        at = _find_frames(data, start, min(len(data), start + _SEARCH_BYTES), length)
        if at >= 0:
            return kind, at
    return None


def is_trailing_tag(data: Octets, at: int) -> bool:
    """Whether a tag starts at ``at`` that stands behind the sound (ID3, APE, Lyrics3)."""
    return starts_with(data, (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI", b"ID3"), at)


def _follow_frames(
    data: Octets,
    at: int,
    length: FrameLength,
    meter: Meter,
    starts: frozenset[int] = frozenset(),
) -> _FrameWalk:
    """Follow the frames from ``at`` to the end; a frame at one of ``starts`` begins a new part."""
    size, walk = len(data), _FrameWalk(at, [[at, at, 0]])
    while True:
        walk.end = at
        meter.step()
        step = length(data, at)
        if step and at + step <= size:
            if at in starts and walk.parts[-1][2]:
                walk.parts.append([at, at, 0])
            at += step
            walk.parts[-1][1] = at
            walk.parts[-1][2] += 1
            continue
        if step or (size - 7 < at < size and data[at] == 0xFF):
            walk.problem = Problem("truncated", "it ends in the middle of a frame")
            return walk
        after_tag = skip_id3(data, at)
        if after_tag == at or after_tag >= size:
            break
        at = after_tag
        walk.parts.append([at, at, 0])
    if at < size and not is_trailing_tag(data, at):
        again, tail = _find_frames(data, at, size, length, meter), size - at
        if again >= 0:
            walk.problem = Problem("damaged", f"bytes {at} to {again} are no audio frames")
        elif tail > _MAX_STRAY_BYTES:
            walk.problem = Problem("damaged", f"its last {tail} bytes are no audio frames")
            walk.tail_only = True
    return walk


def _info_headers(data: Octets, meter: Meter) -> frozenset[int]:
    """Find where frames with a Xing or Info header may start: the first frames of files."""
    starts: set[int] = set()
    for magic in (b"Xing", b"Info"):
        at = data.find(magic, 0)
        while at >= 0:
            meter.step()
            # It stands behind the frame's header, checksum and side information.
            places = (at - before for before in (13, 15, 21, 23, 36, 38) if at >= before)
            starts.update(place for place in places if mpeg_length(data, place))
            at = data.find(magic, at + 4)
    return frozenset(starts)


def _declared_frames(data: Octets, start: int) -> int | None:
    """Read the frame count of a Xing, Info or VBRI header in the first frame.

    0 where the header states none, None where there is no such header.
    """
    frame = data[start : start + mpeg_length(data, start)]
    for magic in (b"Xing", b"Info"):
        at = frame.find(magic, 13, 42)
        if at >= 0 and len(frame) >= at + 12:
            flags, frames = struct.unpack_from(">II", frame, at + 4)
            return int(frames) if flags & 1 else 0
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return int.from_bytes(frame[50:54], "big")
    return None


def inspect_mp3(data: Octets, start: int, meter: Meter) -> Structure:
    """Follow the frames of an MP3 or MP2 stream that starts at ``start``."""
    walk = _follow_frames(data, start, mpeg_length, meter, _info_headers(data, meter))
    declared_s, complete, problem = 0.0, True, walk.problem
    for at, _, there in walk.parts:
        if not there:
            continue
        _, samples, rate = _mpeg_header(data[at + 1], data[at + 2])
        declared = _declared_frames(data, at)
        frames = there - (declared is not None)
        declared_s += (declared or frames) * samples / rate
        if declared is None or frames < declared:
            complete = False
        # Some encoders count the header's own frame.
        if problem is None and declared is not None and frames < declared - 1:
            problem = Problem("truncated", f"{frames} of {declared} frames are there")
    if walk.tail_only and complete:
        problem = None
    return _stream_structure("MP3", data, walk, problem, declared_s)


def inspect_aac(data: Octets, start: int, meter: Meter) -> Structure:
    """Follow the frames of an ADTS stream that starts at ``start``."""
    walk = _follow_frames(data, start, adts_length, meter)
    return _stream_structure("AAC", data, walk, walk.problem, None)


def _stream_structure(
    name: Literal["MP3", "AAC"],
    data: Octets,
    walk: _FrameWalk,
    problem: Problem | None,
    declared_s: float | None,
) -> Structure:
    """Describe each part by itself, without tags and bytes behind its last frame, for FFmpeg."""
    if not walk.frames:
        raise EmptyAudioError(f"an {name} stream without a single whole frame")
    if problem is not None:
        walk.parts[-1][1] = len(data)
    pieces = tuple(Piece(at, end) for at, end, frames in walk.parts if frames)
    flags: tuple[str, ...] = ()
    lead = walk.parts[0][0] - skip_id3(data, 0)
    if problem is None and lead > _MAX_STRAY_BYTES:
        problem = Problem("damaged", f"its first {lead} bytes are no audio frames")
    elif lead:
        flags = ("leading_data",)
    if problem is None and walk.end < len(data) and not is_trailing_tag(data, walk.end):
        flags = (*flags, "trailing_data")
    return Structure(name, name.lower(), pieces, declared_s, problem=problem, flags=flags)


def inspect_amr(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Follow the frames of an AMR or AMR-WB file (one channel), and find where another one starts
    behind it."""
    wide = starts_with(data, b"#!AMR-WB\n", start)
    sizes, head = (_AMR_WB, 9) if wide else (_AMR_NB, 6)
    at = start + head
    frames, problem = 0, None
    flags: tuple[str, ...] = ()
    behind: int | None = None
    while at < len(data):
        if frames and starts_with(data, AMR_MAGICS, at):
            behind = at
            break
        step = sizes[data[at] >> 3 & 15]
        if not data[at] and len(data) - at <= _MAX_STRAY_BYTES and not any(data[at:]):
            flags = ("trailing_data",)
            break
        if not step or not data[at] or data[at] & 0x83:  # a frame type 0 of zeros is no frame
            problem = Problem("damaged", f"byte {at} starts no AMR frame")
            break
        if at + step > len(data):
            problem = Problem("truncated", "it ends in the middle of a frame")
            break
        at += step
        frames += 1
        if not frames % _AMR_LOOK_EVERY:
            meter.step(_AMR_LOOK_EVERY)
            meter.check_duration(frames * _AMR_FRAME_S)
    if at == start + head:
        if problem is not None and problem.kind == "damaged":
            raise NotAudioError("an AMR header, and behind it no AMR frames")
        raise EmptyAudioError("header only: an AMR file without a single whole frame")
    pieces = (Piece(start, at),)
    return Structure("AMR", "amr", pieces, problem=problem, flags=flags), behind


def amr_pauses(packet: bytes, *, wide: bool) -> bool:
    """Whether some frames of an AMR packet are pauses, and all others have arrived whole."""
    sizes, pauses, at = _AMR_WB if wide else _AMR_NB, 0, 0
    while at < len(packet):
        kind = packet[at] >> 3 & 15
        is_pause = kind in _AMR_PAUSES[wide]
        if not sizes[kind] or not (is_pause or packet[at] & _AMR_GOOD):
            return False
        pauses += is_pause
        at += sizes[kind]
    return at == len(packet) and pauses > 0
