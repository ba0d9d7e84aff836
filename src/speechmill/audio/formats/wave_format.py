"""WAVEFORMATEX: what the samples of a WAV or W64 file are, and how they are to be decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.plain import Stretch, plain_structure
from speechmill.audio.formats.reconcile import SampleHeader, settle
from speechmill.audio.formats.sample_format import Encoding, Order, SampleFormat
from speechmill.audio.formats.sizes import Extent
from speechmill.audio.formats.structure import Piece, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError, NotAudioError

__all__ = ["Sound", "structure_of"]

_EXTENSIBLE = 0xFFFE
_PLAIN: Final[dict[int, Encoding]] = {1: "signed", 3: "float", 6: "alaw", 7: "ulaw"}
_MS_ADPCM, _IMA_ADPCM, _GSM, _G722 = 2, 0x11, 0x31, 0x28F
# Bytes that a block has before its codes, of each channel, and the samples that they hold.
_BLOCK_HEADS = {_MS_ADPCM: (7, 2), _IMA_ADPCM: (4, 1)}
_GSM_BLOCK, _GSM_SAMPLES = 65, 320
_ROUNDING = 0.05  # writers round bytes a second in their own ways
# ADPCM, GSM, MPEG, AAC, WMA, G.722: of other codecs FFmpeg would guess the kind from the bytes.
# fmt: off
_OTHER_TAGS = {
    _MS_ADPCM, _IMA_ADPCM, _GSM, 0x50, 0x55, 0xFF, 0x160, 0x161, 0x162, 0x163, _G722, 0x1610,
    0xA106,
}
# fmt: on
# What sub-formats end with, behind the tag that they begin with: KSDATAFORMAT, and ambisonics.
_SUB_FORMATS = {bytes.fromhex("800000aa00389b71"), bytes.fromhex("8644c8c1ca000000")}
# FFmpeg searches for hidden DTS, for 20 ms, unless told to look less far. It is to read to the end
# of what it is given, which may be longer than 4 GiB.
_OPTIONS = (("ignore_length", "1"), ("probesize", "4096"))
_MAX_RIFF = 0xFFFFFF00


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples of a data chunk, and the fmt chunk before it; or silence that no bytes stand for."""

    fmt: bytes
    extent: Extent
    silent_samples: int = 0


@dataclass(frozen=True, slots=True)
class _Format:
    """The fields of a WAVEFORMATEX."""

    tag: int
    channels: int
    sample_rate: int
    byte_rate: int
    block: int
    bits: int
    valid_bits: int
    extra: bytes  # behind its size: what the codec needs

    def header(self, name: str, order: Order) -> SampleHeader:
        """The fields as those of plain samples; integers of one byte are unsigned."""
        return SampleHeader(
            name,
            _PLAIN[self.tag],
            order,
            self.sample_rate,
            self.channels,
            self.bits,
            self.valid_bits,
            self.block,
            self.byte_rate,
            unsigned_bytes=True,
        )


def _parse(name: str, fmt: bytes, order: Order) -> _Format:
    """Read a fmt chunk; the oldest ones have 14 bytes and no bits a sample.

    Raises DamagedError where it is too short, NotAudioError for a codec that is not read.
    """
    if len(fmt) < 14:
        raise DamagedError(f"the {name} file's fmt chunk has {len(fmt)} bytes, and needs 16")
    tag, channels, rate, byte_rate, block = struct.unpack_from(f"{order}HHIIH", fmt)
    bits = struct.unpack_from(f"{order}H", fmt, 14)[0] if len(fmt) >= 16 else 0
    valid, extra = 0, fmt[18:]
    if tag == _EXTENSIBLE:  # the real one stands in the extension
        if len(fmt) < 40 or fmt[32:40] not in _SUB_FORMATS:
            raise NotAudioError(
                f"the {name} file is of the extensible kind, but its sub-format is unknown"
            )
        valid, _, *tags = struct.unpack_from(f"{order}HIHH", fmt, 18)
        tag = tags[0] or tags[1]  # the second one in a big-endian file
        extra = fmt[40:]
    if tag not in _PLAIN and tag not in _OTHER_TAGS:
        raise NotAudioError(f"its codec (WAVE format tag {tag:#06x}) is not supported")
    return _Format(tag, channels, rate, byte_rate, block, bits, valid, extra)


def structure_of(
    name: str,
    data: Octets,
    sounds: Sequence[Sound],
    order: Order,
    fact: int,
    flags: tuple[str, ...],
    meter: Meter,
) -> Structure:
    """Describe sounds that follow one another in one file.

    ``fact`` is the number of samples that the chunk of that name states.
    """
    formats = {sound.fmt: _parse(name, sound.fmt, order) for sound in sounds}
    if any(one.tag not in _PLAIN for one in formats.values()):
        return _packed(name, sounds, formats[sounds[0].fmt], order, fact, flags)
    forms: dict[bytes, SampleFormat] = {}
    for fmt, one in formats.items():
        # The longest sound tells most about the form of all that have the same fmt chunk.
        extents = [sound.extent for sound in sounds if sound.fmt == fmt]
        longest = max(extents, key=lambda extent: extent.end - extent.start)
        span = longest.start, longest.end
        forms[fmt], odd = settle(data, span, one.header(name, order), meter)
        flags = (*flags, *odd)
    stretches = [Stretch(one.extent, forms[one.fmt], one.silent_samples) for one in sounds]
    return replace(plain_structure(name, "wav", stretches, flags), options=_OPTIONS)


def _packed(
    name: str,
    sounds: Sequence[Sound],
    one: _Format,
    order: Order,
    fact: int,
    flags: tuple[str, ...],
) -> Structure:
    """Describe sound that FFmpeg decodes: what it reads is a WAV file made of what we have read."""
    if order == ">":
        raise NotAudioError(f"a big-endian {name} file of codec {one.tag:#06x} is not supported")
    if len({sound.fmt for sound in sounds}) > 1 or any(sound.silent_samples for sound in sounds):
        raise NotAudioError(
            f"a {name} file of several codecs, or of codecs and silence, is not read"
        )
    held, odd = _check_blocks(name, one)
    flags = (*flags, *odd)
    first = sounds[0].extent
    # Only the last block has padding: libsndfile states half of the samples of stereo ADPCM.
    blocks = (first.end - first.start) // (one.block or 1)
    if len(sounds) > 1 or one.tag == _G722 or (held and blocks * held - fact >= held):
        fact = 0
    pieces, problem, declared = [], None, 0
    for sound in sounds:
        extent = sound.extent
        found, odd = extent.judge(0)
        problem, flags = problem or found, (*flags, *odd)
        size = extent.end - extent.start
        declared += size if found is None or extent.declared is None else extent.declared
        if size:
            pieces.append(Piece(extent.start, extent.end, head=_head(sound.fmt, fact, size)))
    if not pieces:
        raise EmptyAudioError(f"header only: the {name} file holds no samples")
    return Structure(
        name,
        "wav",
        tuple(pieces),
        declared / one.byte_rate if one.byte_rate else None,
        padded_samples=fact or None,
        problem=problem,
        flags=tuple(sorted(set(flags))),
        options=_OPTIONS,
    )


def _check_blocks(name: str, one: _Format) -> tuple[int, tuple[str, ...]]:
    """Count the samples that a block holds, 0 where blocks have no fixed size, and flag bytes a
    second that are not theirs.

    Raises DamagedError where a block does not hold as many as is stated: whoever cuts blocks of
    another size gets noise.
    """
    if not one.channels or not one.sample_rate:
        raise DamagedError(
            f"the header of the {name} file states {one.channels} channels at {one.sample_rate} Hz"
        )
    if one.tag == _GSM and one.block == _GSM_BLOCK:
        return _GSM_SAMPLES, ()
    if one.tag not in _BLOCK_HEADS:
        return 0, ()
    head, held = _BLOCK_HEADS[one.tag]
    bits = 4 if one.tag == _MS_ADPCM else one.bits
    coded = one.block - head * one.channels
    held += 8 * coded // (bits * one.channels) if bits else 0
    stated = int.from_bytes(one.extra[:2], "little")
    if coded <= 0 or not bits or (stated and stated != held):
        raise DamagedError(
            f"the fields of the {name} file's header disagree: {one.block} bytes a block for "
            f"{one.channels} channels of {one.bits} bits hold no {stated} samples"
        )
    byte_rate = one.sample_rate * one.block / held
    is_off = one.byte_rate > 0 and abs(one.byte_rate - byte_rate) > _ROUNDING * byte_rate
    return held, ("wrong_header",) * is_off


def _head(fmt: bytes, fact: int, size: int) -> bytes:
    """What comes before the samples in a WAV file."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)

    chunks = chunk(b"fmt ", fmt)
    if fact:
        chunks += chunk(b"fact", struct.pack("<I", fact))
    size = min(size, _MAX_RIFF)
    return (
        b"RIFF" + struct.pack("<I", len(chunks) + 12 + size) + b"WAVE" + chunks
        + b"data" + struct.pack("<I", size)
    )  # fmt: skip
