"""Sun AU (also with all numbers little-endian): compare its size with the bytes present."""

from __future__ import annotations

import struct
from typing import Final

from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.plain import Stretch, plain_structure
from speechmill.audio.formats.reconcile import SampleHeader, settle
from speechmill.audio.formats.sample_format import Encoding, Order
from speechmill.audio.formats.sizes import Extent, rest_flags
from speechmill.audio.formats.structure import Piece, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError, NotAudioError

__all__ = ["AU_MAGICS", "inspect_au"]

_LITTLE = b"dns."
AU_MAGICS = (b".snd", _LITTLE)
_HEADER_BYTES = 24  # the shortest
# Numbers of plain encodings: what they are, and their bits.
_PLAIN: Final[dict[int, tuple[Encoding, int]]] = {
    1: ("ulaw", 8),
    2: ("signed", 8),
    3: ("signed", 16),
    4: ("signed", 24),
    5: ("signed", 32),
    6: ("float", 32),
    7: ("float", 64),
    27: ("alaw", 8),
}
_G722 = 24


def inspect_au(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe an AU file at ``start``, and find where another one starts behind it."""
    if len(data) < start + _HEADER_BYTES:
        raise EmptyAudioError("header only: the AU file ends inside its header")
    order: Order = "<" if starts_with(data, _LITTLE, start) else ">"
    first, size, encoding, rate, channels = struct.unpack_from(f"{order}5I", data, start + 4)
    if first < _HEADER_BYTES:
        raise DamagedError(f"the AU file's samples would start at byte {first}, in its header")
    present = max(0, len(data) - start - first)
    declared = None if size == 0xFFFFFFFF or (size == 0 and present) else size
    extent = Extent(start, start + first, declared, present)
    if extent.end <= extent.start:
        raise EmptyAudioError("header only: the AU file holds no samples")
    behind = extent.end if starts_with(data, AU_MAGICS, extent.end) else None
    flags = rest_flags(data, extent.end) if behind is None else ()
    if encoding not in _PLAIN:
        if encoding != _G722 or order == "<":
            raise NotAudioError(f"its codec (AU encoding {encoding}) is not supported")
        problem, odd = extent.judge(0)
        pieces = (Piece(start, extent.end),)
        return Structure("AU", "au", pieces, problem=problem, flags=(*flags, *odd)), behind
    kind, bits = _PLAIN[encoding]
    header = SampleHeader("AU", kind, order, rate, channels, bits)
    form, odd = settle(data, (extent.start, extent.end), header, meter)
    return plain_structure("AU", "au", [Stretch(extent, form)], (*flags, *odd)), behind
