"""The form of plain samples: their width, justification and byte order, as arrays have them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoding", "Order", "SampleFormat", "integers"]

Encoding = Literal["signed", "unsigned", "float", "alaw", "ulaw"]
Order = Literal["<", ">"]
"""Little- or big-endian, as ``struct`` and numpy write it."""


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """How plain samples are stored: interleaved, ``width`` bytes each.

    Integers fill the upper bits of their bytes; ``shift`` is the number of bits by which those that
    fill the lower ones are to be moved up.
    """

    sample_rate: int
    channels: int
    encoding: Encoding
    width: int
    order: Order = "<"
    shift: int = 0

    @property
    def block(self) -> int:
        """Bytes that hold one sample of each channel."""
        return self.channels * self.width

    @property
    def name(self) -> str:
        """What FFmpeg calls the samples that ``read`` returns."""
        if self.encoding == "float":
            return "flt" if self.width == 4 else "dbl"
        if self.encoding in {"alaw", "ulaw"}:
            return "s16"
        return {1: "u8", 2: "s16", 3: "s32", 4: "s32"}.get(self.width, "s64")

    @property
    def silence(self) -> bytes:
        """A block of zeros."""
        if self.encoding == "unsigned":
            zero = (1 << 8 * self.width - 1).to_bytes(
                self.width, "big" if self.order == ">" else "little"
            )
        else:
            zero = {"alaw": b"\xd5", "ulaw": b"\xff"}.get(self.encoding, bytes(self.width))
        return zero * self.channels

    def read(self, octets: bytes) -> NDArray[Any]:
        """View or convert whole blocks as samples, [num_channels, num_samples]."""
        if self.encoding == "float":
            samples: NDArray[Any] = np.frombuffer(octets, f"{self.order}f{self.width}")
        elif self.encoding in {"alaw", "ulaw"}:
            samples = _g711(self.encoding)[np.frombuffer(octets, np.uint8)]
        elif self.width == 1:
            samples = np.frombuffer(octets, np.uint8)
            samples = samples if self.encoding == "unsigned" else samples ^ np.uint8(0x80)
        else:
            samples = integers(octets, self.width, self.order)
            if self.encoding == "unsigned":
                samples = samples ^ samples.dtype.type(np.iinfo(samples.dtype).min)
            if self.shift:
                samples = samples << self.shift
        return samples.reshape(-1, self.channels).T


def integers(octets: bytes, width: int, order: Order) -> NDArray[Any]:
    """View or convert signed integers of ``width`` bytes, [num_samples].

    They fill the upper bits of the narrowest type of numpy's that has room for them.
    """
    size = next(size for size in (1, 2, 4, 8) if size >= width)
    if size == width:
        return np.frombuffer(octets, f"{order}i{size}")
    raw = np.frombuffer(octets, np.uint8).reshape(-1, width)
    wide = np.zeros((len(raw), size), np.uint8)
    wide[:, size - width :] = raw if order == "<" else raw[:, ::-1]
    return wide.view(f"<i{size}")[:, 0]


@cache
def _g711(encoding: Encoding) -> NDArray[Any]:
    """The sample, int16, for each byte of A-law or µ-law (ITU-T G.711)."""
    octet = np.arange(256) ^ (0x55 if encoding == "alaw" else 0xFF)
    exponent, mantissa = octet >> 4 & 7, octet & 15
    if encoding == "alaw":
        magnitude = (2 * mantissa + 1 + 32 * (exponent > 0)) << np.maximum(exponent - 1, 0) << 3
        samples = np.where(octet & 0x80, magnitude, -magnitude)
    else:
        magnitude = ((2 * mantissa + 33 << exponent) - 33) << 2
        samples = np.where(octet & 0x80, -magnitude, magnitude)
    return np.asarray(samples, np.int16)
