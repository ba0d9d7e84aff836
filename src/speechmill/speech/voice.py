"""Voice activity detection, by the Silero model that faster-whisper carries.

Whisper makes up words where there are none, above all in digital silence. This finds the stretches
worth transcribing, and is tuned to miss none: voices 40 dB down, in noise as loud as
they are, or a fifth of a second long are found (``tests/speech/test_voice.py`` holds it to that).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.speech.speaker_change import NUM_CEPSTRA, cepstra

__all__ = [
    "FRAME",
    "SAMPLE_RATE",
    "Voice",
    "VoiceOptions",
    "listen",
    "voice_model_digests",
    "voice_spans",
]

SAMPLE_RATE: Final = 16_000
FRAME: Final = 512
"""Samples per probability (32 ms): what Silero was trained with at 16 kHz."""

PIECE: Final = 120 * SAMPLE_RATE // FRAME * FRAME
"""Samples judged in one call of the model: it bounds the memory that long recordings take, and
shapes nothing."""

CONTEXT: Final = 64
"""Samples before a frame that are part of the model's input."""

LOW_PASS_TAPS: Final = 63
"""Length of the low-pass filter, whose transition band is about 800 Hz wide. With it Silero's
probability over a minute of plain noise stays below 0.14; without it, it came to 0.81."""

ReadSamples = Callable[[int, int], NDArray[np.float32]]
"""Reads the samples from one position to another, float32 [num_samples] at 16 kHz."""


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
    level_window_s: int = 3
    """Each second is amplified by the peak of this many seconds around it (of 3,704 s of voice in
    101 clips of five languages, −49 to 0 dB, joined in 30 orders, 39.6 s were missed with 7, 12.0 s
    with 5, 1.8 s with 3 and 14.9 s with 1) …"""
    level_floor: float = 1e-4
    """… but no peak counts as smaller than this (−80 dB): what is below is taken for silence."""
    cutoff_hz: float = 7000.0
    """Higher frequencies are filtered out: where resampling has thinned them out, as in everything
    recorded at a higher rate, Silero drifts to a voice within half a minute of plain noise."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """The options as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """The voice activity of a waveform of ``duration_s``, frame by frame.

    ``probabilities`` of a voice, 0 to 1, and ``levels_db`` (of the amplified copy; 0 is full
    scale) are float32 [num_frames], ``cepstra`` (``speaker_change.cepstra``, not amplified)
    float16 [num_frames, 13]; a frame is 32 ms, the last one may be cut short.
    """

    probabilities: NDArray[np.float32]
    levels_db: NDArray[np.float32]
    cepstra: NDArray[np.float16]
    duration_s: float

    @property
    def highest(self) -> float:
        """The highest probability of a voice; 0 where there are no samples."""
        return float(self.probabilities.max(initial=0.0))


@cache
def voice_model_digests() -> Mapping[str, str]:
    """Compute the SHA-256 of each file of the Silero model in faster-whisper, by file name."""
    spec = find_spec("faster_whisper")  # which is heavy to import
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (spec and spec.submodule_search_locations) or ()
        for path in sorted((Path(folder) / "assets").glob("*.onnx"))
    }


def listen(
    read: ReadSamples, num_samples: int, options: VoiceOptions, duration_s: float | None = None
) -> Voice:
    """Detect voice in a waveform of ``num_samples`` at 16 kHz, read two minutes at a time.

    ``duration_s`` is its exact duration, where its own rate is another.
    """
    silero = _SileroSession()
    probabilities, levels = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    timbres = [np.zeros((0, NUM_CEPSTRA), np.float16)]
    for start in range(0, num_samples, PIECE):
        piece, gains = _low_passed_with_gains(read, start, num_samples, options)
        timbres.append(cepstra(_frames(piece)))
        frames = _frames(piece * gains)
        levels.append(10 * np.log10(np.maximum(np.mean(np.square(frames), axis=1), 1e-10)))
        probabilities.append(silero.hear(frames))
    return Voice(
        _smooth(np.concatenate(probabilities)),
        np.concatenate(levels).astype(np.float32),
        np.concatenate(timbres),
        num_samples / SAMPLE_RATE if duration_s is None else duration_s,
    )


def voice_spans(voice: Voice, options: VoiceOptions) -> list[tuple[float, float]]:
    """Find the stretches of a waveform, (start_s, end_s), that are transcribed.

    They are in order and disjoint; none where nobody speaks. Where no pause is long enough to be
    left out, it is the whole waveform.
    """
    if voice.highest < options.threshold:
        return []
    frame_s = FRAME / SAMPLE_RATE
    voiced = np.flatnonzero(voice.probabilities >= options.span_threshold)
    starts_s = voiced * frame_s
    ends_s = np.minimum((voiced + 1) * frame_s, voice.duration_s)
    pauses = np.flatnonzero(starts_s[1:] - ends_s[:-1] >= options.min_gap_s)
    firsts_s = starts_s[np.concatenate(([0], pauses + 1))] - options.pad_s
    lasts_s = ends_s[np.concatenate((pauses, [-1]))] + options.pad_s
    if starts_s[0] < options.min_gap_s:
        firsts_s[0] = 0.0
    if voice.duration_s - ends_s[-1] < options.min_gap_s:
        lasts_s[-1] = voice.duration_s
    return list(zip(firsts_s.tolist(), lasts_s.tolist(), strict=True))


class _SileroSession:
    """The model's state on its way through one waveform, carried from piece to piece.

    faster-whisper's own wrapper resets it with each call, which changes probabilities for minutes:
    after 16 s of warming up by up to 0.28.
    """

    def __init__(self) -> None:
        from faster_whisper.vad import get_vad_model

        model: Any = get_vad_model()
        self._session = model.session
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros((1, CONTEXT), np.float32)

    def hear(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the probability of a voice in each of the next frames, [num_frames, 512]."""
        contexts = np.concatenate([self._context, frames[:-1, -CONTEXT:]])
        self._context = frames[-1:, -CONTEXT:]
        given = {"input": np.concatenate([contexts, frames], 1), "h": self._h, "c": self._c}
        heard, self._h, self._c = self._session.run(None, given)
        return np.asarray(np.ravel(heard), np.float32)


def _frames(piece: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut [num_samples] into [num_frames, 512]; the last frame is padded with zeros."""
    return np.pad(piece, (0, -len(piece) % FRAME)).reshape(-1, FRAME)


def _low_passed_with_gains(
    read: ReadSamples, start: int, num_samples: int, options: VoiceOptions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the low-passed piece at ``start``, and the gain of each of its samples.

    The gains are those of the whole waveform: enough is read around the piece to know its peaks.
    """
    last = min(start + PIECE, num_samples)
    around = (options.level_window_s // 2 + 2) * SAMPLE_RATE
    begin = max(0, start - around) // SAMPLE_RATE * SAMPLE_RATE
    samples = _low_passed(read(begin, min(last + around, num_samples)), options.cutoff_hz)
    seconds = _gains(samples, options)
    positions = np.arange(start, last, dtype=np.float64)
    positions -= begin + SAMPLE_RATE // 2
    positions /= SAMPLE_RATE
    gains = np.interp(positions, np.arange(len(seconds)), seconds)
    return samples[start - begin : last - begin], gains.astype(np.float32)


def _low_passed(samples: NDArray[np.float32], cutoff_hz: float) -> NDArray[np.float32]:
    """Low-pass float32 [num_samples] at ``cutoff_hz``, by a sinc under a Hamming window."""
    at = np.arange(LOW_PASS_TAPS) - LOW_PASS_TAPS // 2
    taps = np.sinc(2 * cutoff_hz / SAMPLE_RATE * at) * np.hamming(LOW_PASS_TAPS)
    taps = (taps / taps.sum()).astype(np.float32)
    return np.convolve(samples, taps)[LOW_PASS_TAPS // 2 :][: len(samples)]


def _gains(waveform: NDArray[np.float32], options: VoiceOptions) -> NDArray[np.float64]:
    """Compute each second's gain, which brings the peak of the seconds around it to one half."""
    num_seconds = -(-len(waveform) // SAMPLE_RATE)
    peaks = np.maximum.reduceat(np.abs(waveform), np.arange(num_seconds) * SAMPLE_RATE)
    padded = np.pad(peaks.astype(np.float64), options.level_window_s // 2)
    around = np.lib.stride_tricks.sliding_window_view(padded, options.level_window_s).max(axis=1)
    return np.asarray(0.5 / np.maximum(around, options.level_floor), np.float64)


def _smooth(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average over three frames; beyond the ends is silence."""
    padded = np.pad(probabilities, 1)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / np.float32(3)
