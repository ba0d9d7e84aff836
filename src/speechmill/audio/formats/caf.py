"""Apple's CAF: compare the data chunk, and the samples that its packet table states, with the bytes
present."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Final

from speechmill.audio.formats.chunks import is_name
from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.plain import Stretch, plain_structure
from speechmill.audio.formats.reconcile import SampleHeader, settle
from speechmill.audio.formats.sample_format import Encoding
from speechmill.audio.formats.sizes import Extent, rest_flags
from speechmill.audio.formats.structure import Piece, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError

__all__ = ["CAF_MAGIC", "inspect_caf"]

CAF_MAGIC = b"caff"
_PLAIN: Final[dict[bytes, Encoding]] = {b"lpcm": "signed", b"ulaw": "ulaw", b"alaw": "alaw"}
_FLOAT, _LITTLE = 1, 2  # flags of lpcm


@dataclass(slots=True)
class _Walk:
    """The chunks followed so far."""

    description: bytes = b""
    table: bytes = b""
    extents: list[Extent] = field(default_factory=list)
    end: int = 0
    behind: int | None = None


def inspect_caf(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe a CAF file at ``start``, and find where another one starts behind it."""
    walk = _follow(data, start, meter)
    if not walk.extents:
        raise EmptyAudioError("header only: the CAF file has no data chunk")
    if len(walk.description) < 32:
        raise DamagedError("the CAF file has no desc chunk: nothing says what its samples are")
    flags = () if walk.behind is not None else rest_flags(data, walk.end)
    flags = (*flags, *("trailing_data",) * (len(walk.extents) > 1))
    plain = walk.description[8:12] in _PLAIN
    structure = (_plain if plain else _packed)(data, start, walk, flags, meter)
    return structure, walk.behind


def _follow(data: Octets, start: int, meter: Meter) -> _Walk:
    at, walk = start + 8, _Walk()
    while True:
        meter.step()
        walk.end = min(at, len(data))
        if walk.extents and (found := data.find(CAF_MAGIC, at, at + 5)) >= 0:  # behind padding
            walk.behind = found
            break
        name, body = data[at : at + 4], at + 12
        if body > len(data) or not is_name(name):
            break
        size = int.from_bytes(data[at + 4 : body], "big", signed=True)
        present = len(data) - body - 4
        if name == b"desc":
            walk.description = data[body : body + 32]
        elif name == b"pakt":
            walk.table = data[body : body + 24]
        elif name == b"data":
            declared = None if size < 0 else max(0, size - 4)
            walk.extents.append(Extent(start, body + 4, declared, max(0, present), 12))
            if size < 0:
                walk.end = len(data)
                break
        elif not 0 <= size <= len(data) - body:
            break
        at = body + max(0, size)
    return walk


def _plain(
    data: Octets, _start: int, walk: _Walk, flags: tuple[str, ...], meter: Meter
) -> Structure:
    rate, code, options, size, frames, channels, bits = struct.unpack(">d4s5I", walk.description)
    encoding = _PLAIN[code]
    if code == b"lpcm" and options & _FLOAT:
        encoding = "float"
    header = SampleHeader(
        "CAF",
        encoding,
        "<" if options & _LITTLE and code == b"lpcm" else ">",
        round(rate) if math.isfinite(rate) else 0,
        channels,
        bits,
        block=size // frames if frames and size % frames == 0 else size,
    )
    extent = walk.extents[0]
    form, odd = settle(data, (extent.start, extent.end), header, meter)
    return plain_structure("CAF", "caf", [Stretch(extent, form)], (*flags, *odd))


def _packed(
    data: Octets, start: int, walk: _Walk, flags: tuple[str, ...], _meter: Meter
) -> Structure:
    extent = walk.extents[0]
    problem, odd = extent.judge(0)
    if extent.end <= extent.start:
        raise EmptyAudioError("header only: the CAF file holds no samples")
    if not walk.table and problem is not None:
        raise EmptyAudioError("a CAF file without its packet table: the end of it is missing")
    valid = int.from_bytes(walk.table[8:16], "big", signed=True) if len(walk.table) == 24 else 0
    return Structure(
        "CAF",
        "caf",
        (Piece(start, len(data) if walk.behind is None else walk.behind),),
        least_samples=valid if valid > 0 else None,
        problem=problem,
        flags=(*flags, *odd),
    )
