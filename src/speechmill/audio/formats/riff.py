"""Containers of plain samples (WAV, RF64, W64, AIFF, AU, CAF, SPHERE): check their sizes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from speechmill.audio.formats.octets import Octets, Span
from speechmill.audio.formats.structure import Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import EmptyAudioError, NotAudioError

__all__ = ["inspect_aiff", "inspect_au", "inspect_caf", "inspect_sph", "inspect_w64", "inspect_wav"]

# Writers that cannot seek back leave a placeholder: 0xFFFFFFFF, 0x7FFFF000 (SoX), 0x80000000 …
_UNKNOWN_FROM = 0x7FFF0000
_UNKNOWN_64 = 1 << 62  # their 64-bit placeholders are all above
_PCM_TAGS = {1, 3, 6, 7}  # integers, floats, A-law, µ-law
# ADPCM, GSM, MPEG, AAC, WMA, G.722: of other codecs FFmpeg would guess the kind from the bytes.
# fmt: off
_OTHER_TAGS = {
    2, 0x11, 0x31, 0x50, 0x55, 0xFF, 0x160, 0x161, 0x162, 0x163, 0x28F, 0x1610, 0xA106,
}
# fmt: on
_MAX_CHUNKS = 10_000  # a file of empty chunks would take for ever
_MAX_SPHERE = 1 << 20  # bytes of a header, whatever it states; the usual one has 1,024


@dataclass(frozen=True, slots=True)
class _SampleData:
    """Where the samples start, how many bytes are declared (None: unknown) and are there."""

    start: int
    declared: int | None
    present: int


def _chunks(data: Octets, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of an IFF-like file as (id, start of the body, declared bytes)."""
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        name = data[at : at + 4]
        (size,) = struct.unpack_from(f"{order}I", data, at + 4)
        yield name, at + 8, size
        at += 8 + size + (size & 1)


def _compare_sizes(
    name: str,
    demuxer: str,
    file: Span,
    where: _SampleData,
    *,
    block: int,
    bytes_per_s: float,
    exact: bool,
    options: tuple[tuple[str, str], ...] = (),
    padded_samples: int | None = None,
) -> Structure:
    """An structure from the bytes declared and present.

    ``block`` bytes hold one sample of each channel; ``exact`` if that is so for every block.
    """
    present = where.present if where.declared is None else min(where.present, where.declared)
    if present < max(1, block if exact else 1):
        raise EmptyAudioError(f"header only: the {name} file holds no samples")
    problem: Problem | None = None
    flags: tuple[str, ...] = ()
    if where.declared is None:
        flags = ("unknown_length",)
    # A last sample that is not whole, or the padding byte, is nobody's loss.
    elif where.declared - where.present >= (max(1, block) if exact else 2):
        problem = Problem("truncated", f"{where.present} of {where.declared} bytes are there")
    declared = where.declared if where.declared is not None else present
    return Structure(
        name,
        demuxer,
        (file,),
        declared / bytes_per_s if bytes_per_s else None,
        declared_samples=present // block if exact and block else None,
        padded_samples=padded_samples,
        problem=problem,
        flags=flags,
        options=options,
    )


def inspect_wav(data: Octets, start: int, _meter: Meter) -> Structure:
    """Compare a RIFF, RF64 or BW64 file's data chunk (EBU Tech 3306) with the bytes present."""
    order = ">" if data[start : start + 4] == b"RIFX" else "<"
    fmt, size64, found, fact = b"", None, None, 0
    for name, at, size in _chunks(data, start + 12, order):
        if name == b"fmt ":
            fmt = data[at : at + min(size, 40)]
        elif name == b"ds64" and at + 16 <= len(data):
            (size64,) = struct.unpack_from("<Q", data, at + 8)
        elif name == b"fact" and at + 4 <= len(data):
            (fact,) = struct.unpack_from(f"{order}I", data, at)
        elif name == b"data":
            found = _wav_data(data, at, size, size64, order)
            break
    if found is None or len(fmt) < 16:
        raise EmptyAudioError("header only: the WAV file has no data chunk")
    tag, bytes_per_s, block = _wave_format(fmt, order)
    options = (("ignore_length", "1"),) if found.declared is None else ()
    return _compare_sizes(
        "WAV",
        "wav",
        (start, len(data)),
        found,
        block=block,
        bytes_per_s=bytes_per_s,
        exact=tag in _PCM_TAGS,
        # FFmpeg searches plain samples for hidden DTS, for 20 ms, unless told to look less far.
        options=(*options, ("probesize", "4096")),
        padded_samples=fact or None,
    )


def _wave_format(fmt: bytes, order: str) -> tuple[int, int, int]:
    """Read codec tag, bytes per second and bytes per block of a WAVEFORMATEX."""
    tag, _, _, bytes_per_s, block, _ = struct.unpack_from(f"{order}HHIIHH", fmt)
    if tag == 0xFFFE and len(fmt) >= 26:  # the real one stands in the extension
        (tag,) = struct.unpack_from(f"{order}H", fmt, 24)
    if tag not in _PCM_TAGS | _OTHER_TAGS:
        raise NotAudioError(f"its codec (WAVE format tag {tag:#06x}) is not supported")
    return tag, bytes_per_s, block


def _wav_data(data: Octets, at: int, size: int, size64: int | None, order: str) -> _SampleData:
    present = max(0, len(data) - at)
    declared: int | None = size
    if size == 0xFFFFFFFF and size64 is not None:
        declared = size64 if 0 < size64 < _UNKNOWN_64 else None
    elif (size >= _UNKNOWN_FROM and size > present) or (
        size == 0 and present and not _only_chunks(data, at, order)
    ):
        declared = None
    return _SampleData(at, declared, present)


def _only_chunks(data: Octets, at: int, order: str) -> bool:
    """Whether further chunks, and no samples, fill the file from ``at`` to its end."""
    end = at
    for name, body, size in _chunks(data, at, order):
        if not name.isascii() or not name.decode("ascii").isprintable():
            return False
        end = body + size
    return 0 <= end - len(data) <= 1


def inspect_w64(data: Octets, start: int, _meter: Meter) -> Structure:
    """Check a Sony Wave64 file: chunks with 16-byte names, and sizes that count their header."""
    at, fmt = start + 40, b""
    for _ in range(_MAX_CHUNKS):
        if at + 24 > len(data):
            break
        name, size = data[at : at + 4], int.from_bytes(data[at + 16 : at + 24], "little")
        if name == b"fmt ":
            fmt = data[at + 24 : at + 64]
        if name == b"data" and len(fmt) >= 16:
            tag, bytes_per_s, block = _wave_format(fmt, "<")
            declared = size - 24 if 24 <= size < _UNKNOWN_64 else None
            found = _SampleData(at + 24, declared, len(data) - at - 24)
            return _compare_sizes(
                "W64",
                "w64",
                (start, len(data)),
                found,
                block=block,
                bytes_per_s=bytes_per_s,
                exact=tag in _PCM_TAGS,
                options=(("probesize", "4096"),),
            )
        at += max(24, size + 7 & ~7)
    raise EmptyAudioError("header only: the W64 file has no data chunk")


def inspect_aiff(data: Octets, start: int, _meter: Meter) -> Structure:
    """Compare the sound chunk of an AIFF or AIFF-C file with the bytes present."""
    common, found = b"", None
    for name, at, size in _chunks(data, start + 12, ">"):
        if name == b"COMM":
            common = data[at : at + min(size, 22)]
        elif name == b"SSND" and at + 8 <= len(data):
            offset = int.from_bytes(data[at : at + 4], "big")
            first = at + 8 + offset
            found = _SampleData(first, max(0, size - 8 - offset), max(0, len(data) - first))
    if found is None or len(common) < 18:
        raise EmptyAudioError("header only: the AIFF file has no sound chunk")
    channels, frames, bits = struct.unpack_from(">HIH", common)
    plain = data[start + 8 : start + 12] == b"AIFF" or common[18:22] in {
        b"NONE",
        b"sowt",
        b"twos",
        b"raw ",
    }
    block = channels * ((bits + 7) // 8) if plain else 0
    rate = _float80(common[8:18])
    if plain and frames * block > (found.declared or 0):
        found = _SampleData(found.start, frames * block, found.present)
    file = (start, len(data))
    structure = _compare_sizes(
        "AIFF", "aiff", file, found, block=block, bytes_per_s=rate * block, exact=plain
    )
    if plain and frames == 0:
        raise EmptyAudioError("header only: the AIFF file says that it holds no samples")
    return structure


def _float80(number: bytes) -> float:
    """Decode an 80-bit float, as AIFF writes its sample rate."""
    exponent = (number[0] & 0x7F) << 8 | number[1]
    if not 16383 <= exponent < 16383 + 63:
        return 0.0
    return int.from_bytes(number[2:10], "big") * 2.0 ** (exponent - 16383 - 63)


def inspect_au(data: Octets, start: int, _meter: Meter) -> Structure:
    """Compare the size in a Sun AU file's header with the bytes present."""
    if len(data) < start + 24:
        raise EmptyAudioError("header only: the AU file ends inside its header")
    first, size, encoding, rate, channels = struct.unpack_from(">5I", data, start + 4)
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(encoding, 0)
    present = max(0, len(data) - start - first)
    declared = None if size == 0xFFFFFFFF or (size == 0 and present) else size
    found = _SampleData(start + first, declared, present)
    file = (start, len(data))
    block = width * channels
    return _compare_sizes(
        "AU", "au", file, found, block=block, bytes_per_s=rate * block, exact=width > 0
    )


def inspect_caf(data: Octets, start: int, meter: Meter) -> Structure:
    """Compare the data chunk of Apple's CAF with the bytes present."""
    at, rate, block, plain, table = start + 8, 0.0, 0, False, b""
    found = None
    while at + 12 <= len(data):
        meter.step()
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 12], "big", signed=True)
        body = at + 12
        if name == b"desc" and body + 32 <= len(data):
            rate, code, _, block, _, _, _ = struct.unpack_from(">d4s5I", data, body)
            plain = code in {b"lpcm", b"ulaw", b"alaw"}
        elif name == b"pakt":
            table = data[body : body + 24]
        elif name == b"data":
            declared = None if size < 0 else max(0, size - 4)
            found = _SampleData(body + 4, declared, max(0, len(data) - body - 4))
        if size < 0:
            break
        at = body + size
    if found is None:
        raise EmptyAudioError("header only: the CAF file has no data chunk")
    structure = _compare_sizes(
        "CAF",
        "caf",
        (start, len(data)),
        found,
        block=block if plain else 0,
        bytes_per_s=rate * block if plain else 0.0,
        exact=plain,
    )
    if not plain and not table and structure.problem is not None:
        raise EmptyAudioError("a CAF file without its packet table: the end of it is missing")
    return structure


def inspect_sph(data: Octets, start: int, _meter: Meter) -> Structure:
    """Compare the sample count of a NIST SPHERE header (TIMIT) with the bytes present."""
    lines = data[start : start + 1024].split(b"\n")
    size = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 1024
    fields = {}
    for line in data[start : start + min(size, _MAX_SPHERE)].split(b"\n")[2:]:
        name, _, value = line.partition(b" -")
        fields[name] = value.partition(b" ")[2].strip()
    if len(data) - start <= size:
        raise EmptyAudioError("header only: the SPHERE file ends with its header")
    numbers = {
        name: int(fields[name])
        for name in (b"sample_count", b"channel_count", b"sample_n_bytes", b"sample_rate")
        if fields.get(name, b"").isdigit()
    }
    plain = b"," not in fields.get(b"sample_coding", b"pcm") and len(numbers) == 4
    block = numbers[b"channel_count"] * numbers[b"sample_n_bytes"] if plain else 0
    declared = numbers.get(b"sample_count", 0) * block if plain else None
    found = _SampleData(start + size, declared, len(data) - start - size)
    return _compare_sizes(
        "SPHERE",
        "nistsphere",
        (start, len(data)),
        found,
        block=block,
        bytes_per_s=numbers.get(b"sample_rate", 0) * block,
        exact=plain,
    )
