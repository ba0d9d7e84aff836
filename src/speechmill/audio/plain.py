"""Read plain samples (PCM, floats, A-law, µ-law) as our own reading of the header says.

FFmpeg is not asked: it reads headers in its own way, and where they are odd it would read the
samples in another form than the one that was checked.
"""

from __future__ import annotations

from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.sample_format import SampleFormat
from speechmill.audio.formats.structure import Piece
from speechmill.audio.mixing import Weights
from speechmill.audio.tally import Tally

__all__ = ["read_samples"]

_BLOCK = 1 << 16  # samples per channel at a time, as many as are mixed at a time


def read_samples(
    data: Octets,
    piece: Piece,
    form: SampleFormat,
    tally: Tally,
    weights: list[Weights | None] | None,
) -> None:
    """Mix all whole blocks of a piece; it goes on with the run before it where that has its form.

    Raises what ``Tally.begin_run`` and the meter raise.
    """
    key = form.sample_rate, form.channels, form.name
    mixer = tally.mixers[-1] if tally.mixers and tally.mixers[-1].key == key else None
    if mixer is None:
        if tally.mixers:
            tally.mixers[-1].flush()
        mixer = tally.begin_run(key, weights, over_range=form.encoding == "float")
    whole = piece.end - (piece.end - piece.start) % form.block
    for at in range(piece.start, whole, _BLOCK * form.block):
        tally.meter.check_time()
        samples = form.read(data[at : min(whole, at + _BLOCK * form.block)])
        tally.meter.sound(samples.shape[1], form.sample_rate)
        mixer.add(samples)
    silence = form.read(form.silence * min(piece.silent_samples, _BLOCK))
    for left in range(piece.silent_samples, 0, -_BLOCK):
        tally.meter.check_time()
        tally.meter.sound(min(left, _BLOCK), form.sample_rate)
        mixer.add(silence[:, : min(left, _BLOCK)])
    mixer.flush()
