"""Describe files of plain samples, whatever their container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechmill.audio.formats.sample_format import SampleFormat
from speechmill.audio.formats.sizes import Extent
from speechmill.audio.formats.structure import Piece, Problem, Structure
from speechmill.errors import EmptyAudioError

__all__ = ["Stretch", "plain_structure"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Samples of one form in a row, and silence behind them that no bytes stand for."""

    extent: Extent
    form: SampleFormat
    silent_samples: int = 0


def plain_structure(
    name: str, demuxer: str, stretches: Sequence[Stretch], flags: Sequence[str]
) -> Structure:
    """Describe stretches of samples that follow one another; ``flags`` are those found so far.

    ``demuxer`` is FFmpeg's for files of this container that are not plain: one may follow.
    Raises EmptyAudioError where there is no sample.
    """
    pieces: list[Piece] = []
    problem: Problem | None = None
    found = set(flags)
    seconds, samples = 0.0, 0
    for one in stretches:
        extent, block = one.extent, one.form.block
        missing, odd = extent.judge(block)
        problem = problem or missing
        found.update(odd)
        pieces.append(Piece(extent.start, extent.end, one.form, one.silent_samples))
        samples += (extent.end - extent.start) // block + one.silent_samples
        size = extent.end - extent.start if missing is None else extent.declared or 0
        seconds += (size // block + one.silent_samples) / (one.form.sample_rate or 1)
    if not samples:
        raise EmptyAudioError(f"header only: the {name} file holds no samples")
    return Structure(
        name,
        demuxer,
        tuple(pieces),
        seconds,
        declared_samples=samples,
        problem=problem,
        flags=tuple(sorted(found)),
    )
