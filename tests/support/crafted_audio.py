"""Makes recordings that no encoder makes, bit by bit: tiny ones that ask for much."""

from __future__ import annotations

import struct

__all__ = ["ogg_checksum", "silent_flac"]


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
