"""Waveforms at another sample rate."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from speechmill.audio import spilling
from speechmill.records import Waveform

__all__ = ["resample"]

_QUALITY = "HQ"  # soxr's default, 20 bits of precision: more than 16-bit speech has


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """Resample a waveform to ``sample_rate`` Hz, by soxr at its "HQ" setting.

    Returns the same object where it has that rate already. A waveform that is not empty stays so.
    What the filter makes overshoot −1..1 is clipped. A long waveform is resampled piece by piece,
    with the same values; its samples are held in a temporary file, and are read-only.

    Raises NoRoomError or StorageError where the temporary folder has no room, or cannot be written
    to.
    """
    if waveform.sample_rate == sample_rate:
        return waveform
    source, rate = waveform.samples, waveform.sample_rate
    if len(source) * max(1.0, sample_rate / rate) > spilling.SPILL_SAMPLES:
        samples = _piecewise(waveform, sample_rate)
    else:
        samples = soxr.resample(source, rate, sample_rate, quality=_QUALITY)
        np.clip(samples, -1.0, 1.0, out=samples)
    if len(samples) == 0 and len(source):
        samples = source.mean(keepdims=True, dtype=np.float32).clip(-1.0, 1.0)
    return Waveform(samples, sample_rate)


def _piecewise(waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Resample and clip without holding all of it in memory, to the same values."""
    stream = soxr.ResampleStream(waveform.sample_rate, sample_rate, 1, "float32", _QUALITY)
    count = len(waveform.samples)
    growth = max(1.0, sample_rate / waveform.sample_rate)
    step = max(1, int(spilling.PIECE_SAMPLES / growth))
    spool = spilling.Spool(count * sample_rate // waveform.sample_rate)
    for at in range(0, count, step):
        piece = np.asarray(waveform.samples[at : at + step])
        samples = stream.resample_chunk(piece, last=at + step >= count)
        spool.add(np.clip(samples, -1.0, 1.0, out=samples))
    return spool.join()
