"""AIFF and AIFF-C: compare the sound chunk with the bytes present and the number of samples."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from speechmill.audio.formats.chunks import FORM, MAX_CHUNKS, iff_chunk, only_chunks
from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.plain import Stretch, plain_structure
from speechmill.audio.formats.reconcile import SampleHeader, settle
from speechmill.audio.formats.sample_format import Encoding, Order, SampleFormat
from speechmill.audio.formats.sizes import Extent, is_unknown, rest_flags
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError

__all__ = ["inspect_aiff"]

# Of plain samples: their encoding, byte order and bits (0: those that the header states).
_PLAIN: Final[dict[bytes, tuple[Encoding, Order, int]]] = {
    b"NONE": ("signed", ">", 0),
    b"none": ("signed", ">", 0),
    b"twos": ("signed", ">", 0),
    b"sowt": ("signed", "<", 0),
    b"raw ": ("unsigned", ">", 0),
    b"in16": ("signed", ">", 16),
    b"in24": ("signed", ">", 24),
    b"in32": ("signed", ">", 32),
    b"42ni": ("signed", "<", 24),
    b"42n1": ("signed", "<", 24),  # libsndfile's
    b"23ni": ("signed", "<", 32),
    b"fl32": ("float", ">", 32),
    b"FL32": ("float", ">", 32),
    b"fl64": ("float", ">", 64),
    b"FL64": ("float", ">", 64),
    b"ulaw": ("ulaw", ">", 8),
    b"ULAW": ("ulaw", ">", 8),
    b"alaw": ("alaw", ">", 8),
    b"ALAW": ("alaw", ">", 8),
}
_IMA4, _IMA4_BLOCK = b"ima4", 34  # bytes of each channel that hold 64 samples
_UNKNOWN_FROM = 0x7F000000  # SoX' placeholder


def inspect_aiff(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe an AIFF or AIFF-C file at ``start``, and find where another one starts behind it."""
    common, extents = b"", list[Extent]()
    at, end, behind = start + 12, len(data), None
    for _ in range(MAX_CHUNKS):
        meter.step()
        end = min(at, len(data))
        if extents and starts_with(data, FORM, at) and data[at + 8 : at + 11] == b"AIF":
            behind = at
            break
        chunk = iff_chunk(data, at, ">")
        if chunk is None:
            break
        at = chunk.next
        if chunk.name == b"COMM":
            common = data[chunk.body : chunk.body + min(chunk.size, 22)]
        elif chunk.name == b"SSND" and chunk.body + 8 <= len(data):
            extents.append(_extent(data, start, chunk.body, chunk.size))
            if extents[-1].declared is None:
                end = len(data)
                break
    if not extents:
        raise EmptyAudioError("header only: the AIFF file has no sound chunk")
    if len(common) < 18:
        raise DamagedError("the AIFF file has no COMM chunk: nothing says what its samples are")
    span = start, len(data) if behind is None else behind
    flags = () if behind is not None else rest_flags(data, end)
    return _structure(data, span, common, extents, flags, meter), behind


def _extent(data: Octets, start: int, body: int, size: int) -> Extent:
    """Find how many bytes of samples a sound chunk declares and has, behind its own offset."""
    offset = int.from_bytes(data[body : body + 4], "big")
    first = body + 8 + offset
    present = max(0, len(data) - first)
    declared: int | None = max(0, size - 8 - offset)
    if is_unknown(size, present, _UNKNOWN_FROM) or (
        not declared and present and not only_chunks(data, first, ">")
    ):
        declared = None
    return Extent(start, first, declared, present, own_head=8)


def _structure(
    data: Octets,
    span: tuple[int, int],
    common: bytes,
    extents: list[Extent],
    flags: tuple[str, ...],
    meter: Meter,
) -> Structure:
    channels, frames, bits = struct.unpack_from(">HIH", common)
    rate = round(_float80(common[8:18]))
    kind, is_plain_aiff = common[18:22], data[span[0] + 8 : span[0] + 12] == b"AIFF"
    if is_plain_aiff and kind not in _PLAIN:
        kind = b"NONE"
    elif is_plain_aiff:  # which has no such field
        flags = (*flags, "wrong_header")
    extent = extents[0]
    if kind not in _PLAIN:
        block = _IMA4_BLOCK * channels if kind == _IMA4 else 0
        problem, odd = extent.judge(0)
        if problem is None and block and extent.declared is not None:
            problem = _too_few(frames * block, extent.declared, block)
        pieces = (Piece(*span),)
        return Structure("AIFF", "aiff", pieces, problem=problem, flags=(*flags, *odd))
    encoding, order, width = _PLAIN[kind]
    header = SampleHeader("AIFF", encoding, order, rate, channels, width or bits)
    form, odd = settle(data, (extent.start, extent.end), header, meter)
    return _plain(data, extents, frames, form, (*flags, *odd))


def _plain(
    data: Octets, extents: list[Extent], frames: int, form: SampleFormat, flags: tuple[str, ...]
) -> Structure:
    """Describe plain samples; of their number and the size of their chunk either may be wrong."""
    extent, problem = extents[0], None
    there = sum((one.end - one.start) // form.block for one in extents)
    if len(extents) == 1 and extent.declared is not None and frames != there:
        wanted = frames * form.block
        behind = extent.start + extent.declared + (extent.declared & 1)
        if frames > there and wanted > extent.declared and only_chunks(data, behind, ">"):
            problem = _too_few(wanted, extent.end - extent.start, form.block)
        elif wanted > extent.declared:  # bytes that are there, and no other chunk, are sound
            extents = [replace(extent, declared=wanted)]
            flags = (*(flag for flag in flags if flag != "trailing_data"), "wrong_length")
        elif extent.declared <= extent.present:
            flags = (*flags, "wrong_length")
    structure = plain_structure("AIFF", "aiff", [Stretch(one, form) for one in extents], flags)
    if problem is None:
        return structure
    return replace(structure, problem=problem, declared_s=frames / (form.sample_rate or 1))


def _too_few(declared: int, there: int, block: int) -> Problem | None:
    if declared - there < block:
        return None
    return Problem("truncated", f"{there} of {declared} bytes are there")


def _float80(number: bytes) -> float:
    """Decode an 80-bit float, as AIFF writes its sample rate."""
    exponent = (number[0] & 0x7F) << 8 | number[1]
    if not 16383 <= exponent < 16383 + 63:
        return 0.0
    return int.from_bytes(number[2:10], "big") * 2.0 ** (exponent - 16383 - 63)
