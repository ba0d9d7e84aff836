"""Compare the bytes that a header declares with those that are there."""

from __future__ import annotations

from dataclasses import dataclass

from speechmill.audio.formats.mpeg import is_trailing_tag
from speechmill.audio.formats.octets import Octets, only_zeros
from speechmill.audio.formats.structure import Problem

__all__ = ["Extent", "is_unknown", "rest_flags"]

_UNKNOWN_FROM = 0x7FFF0000
"""Writers that cannot seek back leave a placeholder: 0xFFFFFFFF, 0x7FFFF000 (SoX), 0x80000000 …"""

_LONGEST_HEAD = 256
"""Bytes before the samples, of headers that writers count as sound by mistake. Longer ones are as
long as the blocks that disks and networks lose."""


def is_unknown(size: int, present: int, least: int = _UNKNOWN_FROM) -> bool:
    """Whether a size of 32 bits, for so many bytes that are there, is a placeholder."""
    return size >= least and size > present


@dataclass(frozen=True, slots=True)
class Extent:
    """Where samples start in a file that starts at ``file``, and how many bytes of them are
    declared (None: unknown) and there.

    ``own_head`` bytes right before them are those of their chunk.
    """

    file: int
    start: int
    declared: int | None
    present: int
    own_head: int = 0

    @property
    def end(self) -> int:
        """Behind the last byte that is declared and there."""
        there = self.present if self.declared is None else min(self.present, self.declared)
        return self.start + max(0, there)

    @property
    def counts_header(self) -> bool:
        """Whether what is declared is too much by exactly a header: that of the chunk, or all that
        comes before the samples, as writers do that count the whole file."""
        head = self.start - self.file
        heads = {self.own_head}
        if head <= _LONGEST_HEAD:
            heads |= {head, head - self.own_head}
        return self.declared is not None and self.declared - self.present in heads - {0}

    def judge(self, block: int) -> tuple[Problem | None, tuple[str, ...]]:
        """Find what is missing of blocks of so many bytes (0: of no fixed size), and the flags."""
        if self.declared is None:
            return None, ("unknown_length",)
        # A last sample that is not whole, or the padding byte, is nobody's loss.
        if self.declared - self.present < (max(1, block) if block else 2):
            return None, ()
        if self.counts_header:
            return None, ("wrong_length",)
        return Problem("truncated", f"{self.present} of {self.declared} bytes are there"), ()


def rest_flags(data: Octets, at: int) -> tuple[str, ...]:
    """``trailing_data`` where the bytes from ``at`` on are neither tags nor zeros."""
    if len(data) - at <= 1 or only_zeros(data, at):  # a byte is padding
        return ()
    if is_trailing_tag(data, at) or is_trailing_tag(data, at + 1):
        return ()
    return ("trailing_data",)
