"""Makes recordings that no encoder makes, bit by bit: tiny ones that ask for much."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["ogg_checksum", "shorten", "silent_flac"]


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    crc, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & mask
    return crc


def ogg_checksum(page: bytes) -> int:
    """Ogg's CRC of a page whose own is zero (RFC 3533, section 6): bit by bit, as it is written."""
    return _crc(page, 0x04C11DB7, 32)


def silent_flac(
    num_frames: int,
    *,
    sample_rate: int = 8000,
    block: int = 65_535,
    declared: int | None = None,
) -> bytes:
    """Silence of 16 bits in frames of ``block`` samples, each of some 14 bytes (RFC 9639).

    ``declared`` is the number of samples in the header; all of them, if nothing is said.
    """
    total = num_frames * block if declared is None else declared
    packed = sample_rate << 44 | 15 << 36 | total
    info = struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    frames = []
    for number in range(num_frames):
        # Fixed blocks; block size in 16 bits, sample rate as in the header; mono, 16 bits.
        head = b"\xff\xf8\x70\x08" + chr(number).encode("utf-8", "surrogatepass")
        head += struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 0x07, 8)]) + bytes(3)  # a constant subframe of zeros
        frames.append(frame + struct.pack(">H", _crc(frame, 0x8005, 16)))
    return b"fLaC\x80\x00\x00\x22" + info + b"".join(frames)


class _Bits:
    """Bits that are written one number behind the other."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def rice(self, value: int, low: int) -> None:
        """A number: as many zeros as its upper bits say, a one, and its ``low`` lower bits."""
        self._bits.append("0" * (value >> low) + "1")
        if low:
            self._bits.append(f"{value & (1 << low) - 1:0{low}b}")

    def number(self, value: int) -> None:
        """A number, and before it how many lower bits it has."""
        low = max(0, value.bit_length() - 1)
        self.rice(low, 2)
        self.rice(value, low)

    def signed(self, value: int, low: int) -> None:
        """A number of either sign."""
        self.rice(value << 1 if value >= 0 else ~value << 1 | 1, low)

    def octets(self) -> bytes:
        """All of them, in whole words of 32."""
        bits = "".join(self._bits)
        bits += "0" * (-len(bits) % 32)
        return int(bits, 2).to_bytes(len(bits) // 8, "big")


def shorten(samples: Sequence[int], *, block: int = 256, head: bytes = b"") -> bytes:
    """One channel of 16 bits in shorten of version 2: blocks of differences (Robinson, 1994)."""
    bits = _Bits()
    for value in (5, 1, block, 0, 0, 0):  # little-endian, channels, block, no prediction, no mean
        bits.number(value)
    bits.rice(9, 2)
    bits.rice(len(head), 5)
    for octet in head:
        bits.rice(octet, 8)
    last = 0
    for at in range(0, len(samples), block):
        part = samples[at : at + block]
        if len(part) < block:
            bits.rice(5, 2)
            bits.number(len(part))
        bits.rice(1, 2)
        differences = [now - before for now, before in zip(part, (last, *part), strict=False)]
        last = part[-1]
        low = max(1, (sum(map(abs, differences)) // len(part)).bit_length())
        bits.rice(low - 1, 3)
        for difference in differences:
            bits.signed(difference, low)
    bits.rice(4, 2)
    return b"ajkg\x02" + bits.octets()
