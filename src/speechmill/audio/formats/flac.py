"""FLAC (RFC 9639): compare the samples with the count and MD5 that the file declares."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.sizes import rest_flags
from speechmill.audio.formats.structure import Piece, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import EmptyAudioError

__all__ = ["FlacCheck", "inspect_flac"]


def inspect_flac(data: Octets, start: int, meter: Meter) -> Structure:
    """Walk the metadata; the samples themselves are checked as they are decoded."""
    at, last = start + 4, False
    while not last:
        meter.step()
        if at + 4 > len(data):
            raise EmptyAudioError("header only: the FLAC file ends inside its metadata")
        last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    if at >= len(data):
        raise EmptyAudioError("header only: the FLAC file holds no samples")
    check = FlacCheck(data[start + 8 : start + 42])
    return Structure(
        "FLAC",
        "flac",
        (Piece(start, len(data)),),
        check.total / check.sample_rate if check.total and check.sample_rate else None,
        flags=() if check.total else ("unknown_length",),
    )


class FlacCheck:
    """Compares decoded samples with what STREAMINFO (34 bytes) declares about them."""

    def __init__(self, stream_info: bytes) -> None:
        packed = int.from_bytes(stream_info[10:18], "big")
        self.sample_rate = packed >> 44
        self.bits = (packed >> 36 & 31) + 1
        self.total = packed & (1 << 36) - 1
        self.expected = stream_info[18:34]
        self._longest_frame = int.from_bytes(stream_info[7:10], "big")  # bytes; 0: not stated
        self.samples = 0
        self.out_of_order = False
        self.reaches_end = False
        self._block = int.from_bytes(stream_info[2:4], "big")
        self._md5 = hashlib.md5(usedforsecurity=False) if any(self.expected) else None
        self._last: int | None = None
        self._packet: bytes | memoryview = b""

    def see_packet(self, packet: bytes | memoryview) -> None:
        """Read from a frame's header whether it follows the one before, and is the last one."""
        self._packet, head = packet, bytes(packet[:12])
        if len(head) < 5 or head[0] != 0xFF or head[1] & 0xFC != 0xF8:
            return
        number = _coded_number(head[4:11])
        if head[1] & 1:  # the number is that of its first sample, else of the frame
            if self._last is not None and number <= self._last:
                self.out_of_order = True
            self.reaches_end = number + self._block >= self.total
        else:
            if self._last is not None and number != self._last + 1:
                self.out_of_order = True
            self.reaches_end = (number + 1) * self._block >= self.total
        self._last = number

    def see_samples(self, samples: NDArray[Any]) -> None:
        """Add samples as FFmpeg gives them: int16 or int32 [num_channels, num_samples]."""
        self.samples += samples.shape[1]
        if self._md5 is None:
            return
        width = (self.bits + 7) // 8
        shift = samples.dtype.itemsize * 8 - self.bits
        interleaved = np.ascontiguousarray(samples.T)
        if shift:
            interleaved = interleaved >> shift
        if width < interleaved.dtype.itemsize:
            octets = interleaved.view(np.uint8).reshape(-1, interleaved.dtype.itemsize)
            interleaved = np.ascontiguousarray(octets[:, :width])
        self._md5.update(interleaved.data)

    @property
    def matches(self) -> bool | None:
        """Whether the MD5 is right; None where there is none."""
        return None if self._md5 is None else self._md5.digest() == self.expected

    def has_more(self) -> bool:
        """Whether the last frame ends before its packet does, and what follows is neither tags nor
        zeros: FFmpeg takes all that comes behind the last frame for a part of it."""
        if not 0 < self._longest_frame < len(self._packet):
            return False
        packet = bytes(self._packet)
        crc, ends = 0, []
        for at, octet in enumerate(packet[: self._longest_frame], 1):
            crc = crc << 8 & 0xFFFF ^ _crc16_table()[crc >> 8 ^ octet]
            if not crc:  # that of a whole frame, with its own checksum; or by chance
                ends.append(at)
        return all(rest_flags(packet, end) for end in ends)


@cache
def _crc16_table() -> list[int]:
    """The checksum of each byte by the polynomial of FLAC's frames, 0x8005."""
    table = []
    for octet in range(256):
        crc = octet << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
        table.append(crc)
    return table


def _coded_number(octets: bytes) -> int:
    """Decode a frame or sample number, coded like UTF-8 but up to 36 bits."""
    first = octets[0]
    if first < 0x80:
        return first
    more = 8 - (first ^ 0xFF).bit_length() - 1
    number = first & (0x3F >> more)
    for octet in octets[1 : 1 + more]:
        number = number << 6 | octet & 0x3F
    return number
