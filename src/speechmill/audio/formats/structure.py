"""The structure of a file, as its container declares it, before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from speechmill.audio.formats.sample_format import SampleFormat

__all__ = ["Piece", "Problem", "Structure", "joined"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file whose samples can still be decoded in part."""

    kind: Literal["truncated", "damaged"]
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a file that is decoded by itself: its first byte, and the one behind its last.

    With a ``form`` the bytes are plain samples of it, or ``silent_samples`` that no bytes stand
    for; without one they are a whole file for FFmpeg, once ``head`` is put before them.
    """

    start: int
    end: int
    form: SampleFormat | None = None
    silent_samples: int = 0
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Structure:
    """How to decode a file, and what it declares about itself.

    ``demuxer`` is FFmpeg's name of the container; ``pieces`` are decoded one after another (a
    chained Ogg has several).
    ``declared_s`` is the length in seconds and ``declared_samples`` in samples per channel, None
    where the file does not say; ``padded_samples`` is the latter where the last block may hold a
    few more, and ``least_samples`` where fewer are a loss, and more may come. ``packet_clock``: the
    packets' own times can be compared with the declared length. ``has_start``: their first one is
    where the sound begins, after silence.
    """

    name: str
    demuxer: str
    pieces: tuple[Piece, ...]
    declared_s: float | None = None
    declared_samples: int | None = None
    padded_samples: int | None = None
    least_samples: int | None = None
    problem: Problem | None = None
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    packet_clock: bool = False
    has_start: bool = False


def joined(structures: Sequence[Structure], flags: tuple[str, ...] = ()) -> Structure:
    """Several files of one kind, written one behind the other, as one; with more ``flags``."""
    first = structures[0]
    seconds = [one.declared_s for one in structures if one.declared_s is not None]
    samples = [one.declared_samples for one in structures if one.declared_samples is not None]
    all_flags = {*flags, *(flag for one in structures for flag in one.flags)}
    if len(structures) == 1:
        return replace(first, flags=tuple(sorted(all_flags)))
    return replace(
        first,
        pieces=tuple(piece for one in structures for piece in one.pieces),
        declared_s=sum(seconds) if len(seconds) == len(structures) else None,
        declared_samples=sum(samples) if len(samples) == len(structures) else None,
        padded_samples=None,  # the padding of all but the last lies within
        least_samples=sum(one.least_samples or 0 for one in structures) or None,
        problem=next((one.problem for one in structures if one.problem is not None), None),
        flags=tuple(sorted(all_flags)),
        has_start=False,
    )
