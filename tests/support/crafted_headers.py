"""Makes files of plain samples field by field, also with fields that disagree."""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Order", "aiff", "au", "caf", "chunk", "fmt", "packed", "sphere", "w64", "wav"]

Order = Literal["<", ">"]
_KSDATAFORMAT = bytes.fromhex("800000aa00389b71")
_W64 = {
    b"riff": bytes.fromhex("2e91cf11a5d628db04c10000"),
    b"wave": bytes.fromhex("f3acd3118cd100c04f8edb8a"),
}


def packed(
    samples: NDArray[Any],
    width: int,
    bits: int,
    *,
    lower: bool = False,
    order: Order = "<",
    unsigned: bool = False,
) -> bytes:
    """Samples [num_channels, num_samples] in −1..1 as integers of ``bits`` in ``width`` bytes: in
    the upper bits, or in the ``lower`` ones."""
    steps = np.clip(
        np.round(samples.T * 2.0 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    whole = [int(step) << (0 if lower else 8 * width - bits) for step in steps.ravel()]
    offset = 1 << 8 * width - 1 if unsigned else 0
    kind: Any = "little" if order == "<" else "big"
    return b"".join((step + offset).to_bytes(width, kind, signed=not unsigned) for step in whole)


def fmt(
    bits: int,
    block: int,
    *,
    tag: int = 1,
    channels: int = 1,
    sample_rate: int = 16000,
    byte_rate: int | None = None,
    valid_bits: int | None = None,
    order: Order = "<",
    extra: bytes = b"",
) -> bytes:
    """The body of a fmt chunk; with ``valid_bits`` of the extensible kind."""
    byte_rate = sample_rate * block if byte_rate is None else byte_rate
    kind = tag if valid_bits is None else 0xFFFE
    body = struct.pack(f"{order}HHIIHH", kind, channels, sample_rate, byte_rate, block, bits)
    if valid_bits is None:
        return body + extra
    return body + struct.pack(f"{order}HHIIHH", 22, valid_bits, 4, tag, 0, 0x10) + _KSDATAFORMAT


def chunk(name: bytes, body: bytes, *, order: Order = "<", size: int | None = None) -> bytes:
    """A chunk of RIFF or AIFF, with its padding; ``size`` is what it states, if not the truth."""
    stated = struct.pack(f"{order}I", len(body) if size is None else size)
    return name + stated + body + bytes(len(body) & 1)


def wav(*chunks: bytes, magic: bytes = b"RIFF") -> bytes:
    """A WAV file of these chunks; RIFX is big-endian, RF64 has its sizes in a chunk of them."""
    body = b"WAVE" + b"".join(chunks)
    order = ">" if magic == b"RIFX" else "<"
    if magic in {b"RF64", b"BW64"}:
        at = body.rindex(b"data") + 4
        size = struct.unpack_from("<I", body, at)[0]
        sizes = chunk(b"ds64", struct.pack("<QQQI", len(body) + 36, size, 0, 0))
        body = b"WAVE" + sizes + body[4:at] + b"\xff" * 4 + body[at + 4 :]
        return magic + b"\xff" * 4 + body
    return magic + struct.pack(f"{order}I", len(body)) + body


def w64(fmt_body: bytes, samples: bytes, *, size: int | None = None, behind: bytes = b"") -> bytes:
    """A Sony Wave64 file."""

    def part(name: bytes, body: bytes, stated: int | None = None) -> bytes:
        head = name + _W64[b"wave"] + struct.pack("<Q", 24 + (stated or len(body)))
        return head + body + bytes(-len(body) % 8)

    body = b"wave" + _W64[b"wave"] + part(b"fmt ", fmt_body) + part(b"data", samples, size)
    return b"riff" + _W64[b"riff"] + struct.pack("<Q", 24 + len(body)) + body + behind


def aiff(
    samples: bytes,
    bits: int,
    *,
    kind: bytes | None = None,
    channels: int = 1,
    sample_rate: int = 16000,
    frames: int | None = None,
    size: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """An AIFF file, or an AIFF-C file of a ``kind`` of compression."""
    frames = len(samples) // (channels * -(-bits // 8)) if frames is None else frames
    exponent = sample_rate.bit_length() - 1
    rate = struct.pack(">HQ", 16383 + exponent, sample_rate << (63 - exponent))
    common = struct.pack(">HIH", channels, frames, bits) + rate
    if kind is not None:
        common += kind + b"\x00\x00"
    sound = chunk(b"SSND", bytes(8) + samples, order=">", size=size)
    body = b"AIFF" if kind is None else b"AIFC"
    body += chunk(b"COMM", common, order=">") + sound + behind
    return b"FORM" + struct.pack(">I", len(body)) + body


def caf(
    samples: bytes,
    bits: int,
    *,
    block: int,
    code: bytes = b"lpcm",
    flags: int = 0,
    channels: int = 1,
    sample_rate: int = 16000,
    size: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """Apple's CAF; of the ``flags`` of lpcm 1 is for floats, 2 for little-endian."""
    described = struct.pack(">d4s5I", sample_rate, code, flags, block, 1, channels, bits)
    stated = len(samples) + 4 if size is None else size
    return (
        b"caff\x00\x01\x00\x00desc" + struct.pack(">q", len(described)) + described
        + b"data" + struct.pack(">qI", stated, 0) + samples + behind
    )  # fmt: skip


def au(
    samples: bytes,
    encoding: int,
    *,
    channels: int = 1,
    sample_rate: int = 16000,
    size: int | None = None,
    order: Order = ">",
) -> bytes:
    """Sun's AU, or its little-endian twin."""
    stated = len(samples) if size is None else size
    head = struct.pack(f"{order}6I", 28, stated, encoding, sample_rate, channels, 0)
    return (b".snd" if order == ">" else b"dns.") + head + samples


def sphere(samples: bytes, **fields: str | int) -> bytes:
    """NIST SPHERE with these fields, of which one that is empty is left out."""
    told: dict[str, str | int] = {
        "channel_count": 1,
        "sample_rate": 16000,
        "sample_coding": "pcm",
        "sample_n_bytes": 2,
        "sample_byte_format": "01",
        **fields,
    }
    width = int(told["sample_n_bytes"]) * int(told["channel_count"])
    told.setdefault("sample_count", len(samples) // max(1, width))
    lines = [
        f"{name} -i {value}" if isinstance(value, int) else f"{name} -s{len(value)} {value}"
        for name, value in told.items()
        if value != ""
    ]
    return "\n".join(["NIST_1A", "   1024", *lines, "end_head", ""]).encode().ljust(1024) + samples
