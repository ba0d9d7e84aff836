"""WAV (RIFF, RIFX, RF64, BW64) and Wave64: find all samples, and check the sizes of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from speechmill.audio.formats.chunks import (
    MAX_CHUNKS,
    RIFF_MAGICS,
    Chunk,
    ChunkAt,
    iff_chunk,
    is_name,
    only_chunks,
)
from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.sample_format import Order
from speechmill.audio.formats.sizes import Extent, is_unknown, rest_flags
from speechmill.audio.formats.structure import Structure
from speechmill.audio.formats.wave_format import Sound, structure_of
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError

__all__ = ["W64_MAGIC", "inspect_w64", "inspect_wav"]

W64_MAGIC = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_UNKNOWN_64 = 1 << 62  # placeholders of 64 bits are all above
_MAX_FMT = 4096  # bytes of a fmt chunk, with what a codec needs; AAC has some ten, WMA fewer


@dataclass(slots=True)
class _Walk:
    """The chunks of one file that were followed so far."""

    start: int
    order: Order = "<"
    fmt: bytes = b""
    fact: int = 0
    size64: int | None = None
    sounds: list[Sound] = field(default_factory=list)
    end: int = 0  # of what was followed
    next_file: int | None = None
    odd: bool = False  # a chunk's size is not what it states


def _w64_chunk(data: Octets, at: int, _order: Order) -> Chunk | None:
    """Read the head of a chunk of W64: a name of 16 bytes, and a size that counts its head."""
    name, body = data[at : at + 4], at + 24
    size = int.from_bytes(data[at + 16 : body], "little") - 24
    if len(data) < body or not is_name(name):
        return None
    if name != b"data" and not 0 <= size <= len(data) - body:
        return None
    return Chunk(name, body, size, body + (max(0, size) + 7 & ~7))


def inspect_wav(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe a RIFF, RF64 or BW64 file (EBU Tech 3306) at ``start``, and find where another one
    starts behind it."""
    walk = _Walk(start, ">" if starts_with(data, b"RIFX", start) else "<")
    _follow(data, start + 12, walk, iff_chunk, meter)
    if not walk.sounds or not walk.fmt:
        _search(data, walk, meter)
    return _finish("WAV", data, walk, meter)


def inspect_w64(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe a Sony Wave64 file at ``start``, and find where another one starts behind it."""
    walk = _Walk(start)
    _follow(data, start + 40, walk, _w64_chunk, meter)
    return _finish("W64", data, walk, meter)


def _follow(data: Octets, at: int, walk: _Walk, chunk_at: ChunkAt, meter: Meter) -> None:
    """Follow the chunks from ``at`` to the end, or to the first bytes that are none."""
    for _ in range(MAX_CHUNKS):
        meter.step()
        walk.end = min(at, len(data))
        if walk.sounds and _starts_file(data, at, chunk_at):
            walk.next_file = at
            return
        chunk = chunk_at(data, at, walk.order)
        if chunk is None:
            return
        at = chunk.next
        if chunk.name == b"fmt ":
            walk.fmt = data[chunk.body : chunk.body + min(chunk.size, _MAX_FMT)]
        elif chunk.name == b"fact":
            walk.fact = _number(data, chunk.body, walk.order)
        elif chunk.name == b"ds64":
            walk.size64 = int.from_bytes(data[chunk.body + 8 : chunk.body + 16], "little")
        elif chunk.name == b"slnt":
            silent = Extent(walk.start, chunk.body + 4, 0, 0)
            walk.sounds.append(Sound(walk.fmt, silent, _number(data, chunk.body, walk.order)))
        elif chunk.name == b"data":
            at = _add_sound(data, chunk, walk, chunk_at)
        elif chunk.name == b"LIST" and starts_with(data, b"wavl", chunk.body):
            at = chunk.body + 4  # samples and silences in turn


def _number(data: Octets, at: int, order: Order) -> int:
    return int.from_bytes(data[at : at + 4], "big" if order == ">" else "little")


def _starts_file(data: Octets, at: int, chunk_at: ChunkAt) -> bool:
    if chunk_at is _w64_chunk:
        return starts_with(data, W64_MAGIC, at)
    return starts_with(data, RIFF_MAGICS, at) and starts_with(data, b"WAVE", at + 8)


def _add_sound(data: Octets, chunk: Chunk, walk: _Walk, chunk_at: ChunkAt) -> int:
    """Note the samples of a data chunk. Returns where the next chunk, or another file, starts."""
    extent = _extent(data, chunk, walk, chunk_at)
    behind = chunk.next
    if extent.declared is None:
        # No sound looks like the head of a file.
        found = data.find(b"WAVEfmt ", extent.start + 8) - 8
        behind = found if found > 0 and _starts_file(data, found, chunk_at) else len(data)
        extent = replace(extent, present=behind - extent.start)
    elif chunk_at is _w64_chunk and starts_with(data, W64_MAGIC, extent.start + chunk.size):
        behind = extent.start + chunk.size  # without padding
    elif extent.declared != chunk.size:  # that of RF64
        behind = extent.start + extent.declared + (extent.declared & 1)
    walk.sounds.append(Sound(walk.fmt, extent))
    return behind


def _extent(data: Octets, chunk: Chunk, walk: _Walk, chunk_at: ChunkAt) -> Extent:
    """Find how many bytes of samples a data chunk declares and has."""
    present = max(0, len(data) - chunk.body)
    declared: int | None = chunk.size
    if chunk_at is _w64_chunk:
        declared = chunk.size if 0 <= chunk.size < _UNKNOWN_64 else None
    elif chunk.size == 0xFFFFFFFF and walk.size64 is not None:
        declared = walk.size64 if 0 < walk.size64 < _UNKNOWN_64 else None
    elif is_unknown(chunk.size, present) or (
        chunk.size == 0 and present and not only_chunks(data, chunk.body, walk.order)
    ):
        declared = None
    own_head = 24 if chunk_at is _w64_chunk else 8
    return Extent(walk.start, chunk.body, declared, present, own_head)


def _search(data: Octets, walk: _Walk, meter: Meter) -> None:
    """Search for chunks that were not found where the sizes before them say: a data chunk counts
    only where it ends with the file."""
    walk.odd = True
    at = data.find(b"fmt ", walk.start)
    if not walk.fmt and at >= 0:
        chunk = iff_chunk(data, at, walk.order)
        if chunk is not None and 14 <= chunk.size <= _MAX_FMT:
            walk.fmt = data[chunk.body : chunk.body + chunk.size]
    at = data.find(b"data", walk.start)
    while at >= 0 and not walk.sounds:
        meter.step()
        chunk = iff_chunk(data, at, walk.order)
        if chunk is not None and chunk.size and only_chunks(data, chunk.next, walk.order):
            extent = Extent(walk.start, chunk.body, chunk.size, len(data) - chunk.body)
            walk.sounds.append(Sound(walk.fmt, extent))
            walk.end = len(data)
        at = data.find(b"data", at + 4)


def _finish(name: str, data: Octets, walk: _Walk, meter: Meter) -> tuple[Structure, int | None]:
    """Describe what was found, and judge what lies behind it."""
    where = walk.end - walk.start
    if not walk.sounds:
        if len(data) - walk.end > 8:
            raise DamagedError(
                f"the {name} file cannot be followed to its samples: at byte {where} there should "
                "be a chunk, and is none"
            )
        raise EmptyAudioError(f"header only: the {name} file has no data chunk")
    if not walk.fmt:
        raise DamagedError(f"the {name} file has no fmt chunk: nothing says what its samples are")
    flags = ("wrong_header",) * walk.odd
    if walk.next_file is None:
        flags = (*flags, *rest_flags(data, walk.end))
    # Samples that come before their fmt chunk are of the one that follows.
    sounds = [sound if sound.fmt else replace(sound, fmt=walk.fmt) for sound in walk.sounds]
    structure = structure_of(name, data, sounds, walk.order, walk.fact, flags, meter)
    return structure, walk.next_file
