"""The structure of a file, as its container declares it, before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechmill.audio.formats.octets import Span

__all__ = ["Problem", "Structure"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file whose samples can still be decoded in part."""

    kind: Literal["truncated", "damaged"]
    text: str


@dataclass(frozen=True, slots=True)
class Structure:
    """How to decode a file, and what it declares about itself.

    ``demuxer`` is FFmpeg's name of the container; ``pieces`` are the parts of the file that are
    decoded one after another, each a whole file of that container (a chained Ogg has several).
    ``declared_s`` is the length in seconds and ``declared_samples`` in samples per channel, None
    where the file does not say; ``padded_samples`` is the latter where the last block may hold a
    few more. ``packet_clock``: the packets' own times can be compared with the declared length.
    """

    name: str
    demuxer: str
    pieces: tuple[Span, ...]
    declared_s: float | None = None
    declared_samples: int | None = None
    padded_samples: int | None = None
    problem: Problem | None = None
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    packet_clock: bool = False
