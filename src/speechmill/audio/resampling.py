"""Waveforms at another sample rate."""

from __future__ import annotations

import numpy as np
import soxr

from speechmill.records import Waveform

__all__ = ["resample"]


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """The waveform at ``sample_rate`` Hz, by soxr at its "HQ" setting.

    The same object where the rate is that already. Never empty for a waveform that is not. What
    overshoots −1..1 by filtering is clipped.
    """
    if waveform.sample_rate == sample_rate:
        return waveform
    samples = soxr.resample(waveform.samples, waveform.sample_rate, sample_rate, quality="HQ")
    if len(samples) == 0 and len(waveform.samples):
        samples = waveform.samples.mean(keepdims=True, dtype=np.float32)
    np.clip(samples, -1.0, 1.0, out=samples)
    return Waveform(samples, sample_rate)
