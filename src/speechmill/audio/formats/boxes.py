"""Containers of packets (WebM, ASF): the last element must end within the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from speechmill.audio.formats.octets import Octets, Span, starts_with
from speechmill.audio.formats.sizes import rest_flags
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import EmptyAudioError

__all__ = ["ASF_MAGIC", "inspect_asf", "inspect_webm"]

ASF_MAGIC = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
# What may stand behind the data: the simple index, the index, and those of media objects and time
# codes.
_ASF_INDEXES = (
    bytes.fromhex("33000890e5b1cf1189f400a0c90349cb"),
    bytes.fromhex("d329e2d6da35d111903400a0c90349be"),
    bytes.fromhex("f803b1fead12644c840f2a1d2f7ad48c"),
    bytes.fromhex("d03fb73c4a0c0348953dedf7b6228f0c"),
)

_EBML, _SEGMENT, _CLUSTER, _INFO = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966
_EBML_MAGIC = _EBML.to_bytes(4, "big")
_DURATION, _SCALE = 0x4489, 0x2AD7B1
_MASTERS = {_SEGMENT, _CLUSTER, _INFO}
_LEAVES = {
    0x114D9B74,
    0x1654AE6B,
    0x1C53BB6B,
    0x1941A469,
    0x1043A770,
    0x1254C367,  # of a Segment
    0xE7,
    0xA3,
    0xA0,
    0xA7,
    0xAB,
    0xAF,
    0x5854,  # of a Cluster
    0x73A4,
    0x7384,
    0x3CB923,
    0x3C83AB,
    0x3EB923,
    0x3E83BB,
    0x4444,
    0x6924,  # of an Info
    _SCALE,
    _DURATION,
    0x4461,
    0x7BA9,
    0x4D80,
    0x5741,
    0xEC,
    0xBF,
    _EBML,
}


def _vint(data: Octets, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """Read an EBML number and its length in bytes; length 0 where there is none (RFC 8794)."""
    if at >= len(data) or data[at] == 0:
        return 0, 0
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return 0, 0
    value = int.from_bytes(data[at : at + length], "big")
    return (value if keep_marker else value & (1 << 7 * length) - 1), length


@dataclass(slots=True)
class _EbmlWalk:
    """The elements followed so far."""

    end: int  # of the Segment, as it declares it
    cluster_end: int = 0
    scale_ns: int = 1_000_000
    duration: float | None = None
    clusters: int = 0
    in_segment: bool = False
    behind: int | None = None  # where another file starts
    open_end: bool = False  # the Segment does not say how long it is
    problem: Problem | None = None

    def enter(self, name: int, body: int, size: int, *, unknown: bool) -> None:
        """Note the start of an element that has elements inside."""
        if name == _SEGMENT:
            self.in_segment = True
            self.open_end = unknown
            self.end = self.end if unknown else body + size
        elif name == _CLUSTER:
            self.clusters += 1
            self.cluster_end = self.end if unknown else body + size


def inspect_webm(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Follow the elements of a WebM or Matroska file to the last block (RFC 9559), and find where
    another file starts behind it."""
    walk, at = _EbmlWalk(end=len(data)), start
    while at < len(data):
        if walk.in_segment and starts_with(data, _EBML_MAGIC, at):
            walk.behind = at
            break
        if at >= walk.end:
            break
        meter.step()
        name, name_bytes = _vint(data, at, keep_marker=True)
        size, size_bytes = _vint(data, at + name_bytes, keep_marker=False)
        body = at + name_bytes + size_bytes
        if not name_bytes or not size_bytes or name not in _MASTERS | _LEAVES:
            near_end = len(data) - at < 12
            walk.problem = Problem(
                "truncated" if near_end else "damaged",
                f"there is no valid element at byte {at - start}",
            )
            break
        unknown = size == (1 << 7 * size_bytes) - 1
        if name in _MASTERS:
            walk.enter(name, body, size, unknown=unknown)
            at = body
            continue
        if body + size > len(data):
            walk.problem = Problem("truncated", "it ends inside a block")
            break
        if name == _SCALE and size <= 8:
            walk.scale_ns = int.from_bytes(data[body : body + size], "big")
        elif name == _DURATION and size in {4, 8}:
            (walk.duration,) = struct.unpack_from(">f" if size == 4 else ">d", data, body)
        at = body + size
    if not walk.clusters:
        raise EmptyAudioError("header only: the WebM file holds no samples")
    if walk.problem is None and walk.end > len(data):
        there = f"{len(data) - start} of {walk.end - start} bytes are there"
        walk.problem = Problem("truncated", there)
    declared_s = walk.duration * walk.scale_ns / 1e9 if walk.duration else None
    flags: tuple[str, ...] = ()
    if walk.problem is None:
        flags = ("unknown_length",) * (walk.open_end and declared_s is None)
        flags = (*flags, *(rest_flags(data, at) if walk.behind is None else ()))
    structure = Structure(
        "WebM",
        "matroska,webm",
        (Piece(start, len(data) if walk.behind is None else walk.behind),),
        declared_s,
        problem=walk.problem,
        flags=flags,
        packet_clock=True,
        has_start=True,
    )
    return structure, walk.behind


def inspect_asf(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Compare the size of an ASF (WMA) file's data object with the bytes present, and find where
    another file starts behind it."""
    at = start
    while at + 24 <= len(data):
        meter.step()
        size = int.from_bytes(data[at + 16 : at + 24], "little")
        if not starts_with(data, _ASF_DATA, at):
            at += max(24, size)
            continue
        if len(data) - at <= 50:
            break
        problem: Problem | None = None
        flags: tuple[str, ...] = ()
        if size >> 62 or size < 50:  # a broadcast
            size, flags = len(data) - at, ("unknown_length",)
        elif at + size > len(data):
            present = len(data) - at
            problem = Problem("truncated", f"{present} of {size} bytes of sound are there")
        end = min(len(data), at + size)  # without an index or what was appended
        declared_s = None if flags else _asf_duration_s(data, (start, at), meter)
        at = end
        while starts_with(data, _ASF_INDEXES, at):
            meter.step()
            at += max(24, int.from_bytes(data[at + 16 : at + 24], "little"))
        behind = at if starts_with(data, ASF_MAGIC, at) else None
        structure = Structure(
            "WMA",
            "asf",
            (Piece(start, end),),
            declared_s,
            problem=problem,
            flags=flags if behind is not None else (*flags, *rest_flags(data, at)),
            packet_clock=True,
        )
        return structure, behind
    raise EmptyAudioError("header only: the WMA file holds no samples")


def _asf_duration_s(data: Octets, header: Span, meter: Meter) -> float | None:
    """Read the length from the file properties; FFmpeg's own is a guess from the file's size."""
    start, end = header
    at = start + 30
    while at + 24 <= end:
        meter.step()
        if starts_with(data, _ASF_PROPERTIES, at) and at + 92 <= end:
            play_100ns, _, preroll_ms, flags = struct.unpack_from("<QQQI", data, at + 64)
            seconds = play_100ns / 1e7 - preroll_ms / 1e3
            return seconds if seconds > 0 and not flags & 1 else None
        at += max(24, int.from_bytes(data[at + 16 : at + 24], "little"))
    return None
