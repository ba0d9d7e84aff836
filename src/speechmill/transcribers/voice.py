"""Where in a waveform somebody speaks, as Silero's voice activity model hears it.

Whisper makes up words where there are none, above all in digital silence. This finds the stretches
that are worth transcribing, and it is meant to miss none: voices 40 dB down, in noise as loud as
they are, or a fifth of a second long are found (``tests/test_whisper.py`` holds it to that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

__all__ = ["SAMPLE_RATE", "VoiceOptions", "voice_spans"]

SAMPLE_RATE: Final = 16_000
FRAME: Final = 512
"""Samples that Silero judges at once (32 ms)."""

PIECE: Final = 600 * SAMPLE_RATE // FRAME * FRAME
"""Samples judged in one call of the model: it bounds the memory that long recordings take."""

WARM_UP: Final = 64 * FRAME
"""Samples heard again before a piece, so that the model is in the state it would be in."""


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """What counts as voice. All of it shapes the text, so all of it is in the recipe.

    Probabilities are averages over three frames (96 ms): a single frame may err.
    """

    threshold: float = 0.4
    """A recording has voice if its highest probability reaches this."""
    span_threshold: float = 0.2
    """Once it has, whatever reaches this is transcribed."""
    min_gap_s: float = 5.0
    """Stretches without voice are left out if they are at least as long as this."""
    pad_s: float = 1.0
    """What is kept of them on either side."""
    level_window_s: int = 7
    """Each second is amplified by the peak of so many around it …"""
    level_floor: float = 1e-4
    """… but no peak counts as smaller than this (−80 dB): what is below is taken for silence."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """The options as JSON values."""
        return asdict(self)


def voice_spans(
    waveform: NDArray[np.float32], options: VoiceOptions
) -> tuple[list[tuple[float, float]], float]:
    """Find the stretches of a waveform (float32 [num_samples], 16 kHz) to be transcribed.

    Returns the spans as (start_s, end_s), in order and apart, empty where nobody speaks; and the
    highest probability of a voice. Where no pause is long enough to be left out, the only span is
    the whole waveform.
    """
    probabilities = _smooth(_voice_probabilities(waveform, options))
    highest = float(probabilities.max(initial=0.0))
    if highest < options.threshold:
        return [], highest
    return _spans(probabilities, len(waveform) / SAMPLE_RATE, options), highest


def _spans(
    probabilities: NDArray[np.float32], duration_s: float, options: VoiceOptions
) -> list[tuple[float, float]]:
    """Join the frames that may hold a voice (there is at least one) across the short pauses."""
    voiced = np.flatnonzero(probabilities >= options.span_threshold)
    starts_s = voiced * (FRAME / SAMPLE_RATE)
    ends_s = np.minimum((voiced + 1) * (FRAME / SAMPLE_RATE), duration_s)
    pauses = np.flatnonzero(starts_s[1:] - ends_s[:-1] >= options.min_gap_s)
    firsts_s = starts_s[np.concatenate(([0], pauses + 1))] - options.pad_s
    lasts_s = ends_s[np.concatenate((pauses, [-1]))] + options.pad_s
    if starts_s[0] < options.min_gap_s:
        firsts_s[0] = 0.0
    if duration_s - ends_s[-1] < options.min_gap_s:
        lasts_s[-1] = duration_s
    return list(zip(firsts_s.tolist(), lasts_s.tolist(), strict=True))


def _voice_probabilities(
    waveform: NDArray[np.float32], options: VoiceOptions
) -> NDArray[np.float32]:
    """[num_samples] → the probability of a voice in each frame, [ceil(num_samples / 512)]."""
    if len(waveform) == 0:
        return np.zeros(0, np.float32)
    model: Any = get_vad_model()
    gains = _gains(waveform, options)
    pieces = []
    for start in range(0, len(waveform), PIECE):
        first = max(0, start - WARM_UP)
        samples = waveform[first : start + PIECE]
        positions = np.arange(first, first + len(samples)) / SAMPLE_RATE - 0.5
        level = np.interp(positions, np.arange(len(gains)), gains)
        levelled = (samples * level).astype(np.float32)
        padded = np.pad(levelled, (0, -len(levelled) % FRAME))
        pieces.append(np.ravel(model(padded))[(start - first) // FRAME :])
    return np.concatenate(pieces)


def _gains(waveform: NDArray[np.float32], options: VoiceOptions) -> NDArray[np.float64]:
    """Each second's gain, which brings the peak of the seconds around it to one half."""
    num_seconds = -(-len(waveform) // SAMPLE_RATE)
    peaks = np.maximum.reduceat(np.abs(waveform), np.arange(num_seconds) * SAMPLE_RATE)
    padded = np.pad(peaks.astype(np.float64), options.level_window_s // 2)
    around = np.lib.stride_tricks.sliding_window_view(padded, options.level_window_s).max(axis=1)
    return np.asarray(0.5 / np.maximum(around, options.level_floor), np.float64)


def _smooth(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages over three frames; what lies beyond the ends counts as silence."""
    padded = np.pad(probabilities, 1)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / np.float32(3)
