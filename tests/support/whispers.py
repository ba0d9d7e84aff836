"""Whisper, opened once in each process, and what it is given to hear."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Speech, Transcript
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers.whisper import WhisperTranscriber
from tests.support.weights import SAMPLE_RATE, whisper

LOBSTERS = "speech/367/367-130732-0000.flac"  # "Lobsters and lobsters", 2.4 s
CHURCHYARDS = "speech/533/533-1066-0000.flac"  # "When churchyards yawn", 2.6 s
JFK = "oddities/jfk/jfk.flac"
CLIPS = (
    LOBSTERS,
    CHURCHYARDS,
    JFK,
    "speech/p225/p225_001_mic1.flac",
    "speech/p226/p226_022.wav",
    "speech/1998/1998-15444-0009.flac",
    "speech/2033/2033-164914-0002.flac",
    "speech/fleurs_en/fleurs-en-003.ogg",
)


@lru_cache(maxsize=4)  # a model is up to a gigabyte, and two processes run the tests
def opened(model: str, **options: Any) -> WhisperTranscriber:
    whisper(model)
    return WhisperTranscriber(
        model, TranscriberOptions(**{"device": "cpu", "cpu_threads": 2, **options})
    )


def one(transcriber: WhisperTranscriber, samples: NDArray[np.float32]) -> Transcript:
    (transcript,) = transcriber.transcribe([Speech(samples)])
    return transcript


def zeros(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def chime(seed: int) -> NDArray[np.float32]:
    """Bells, float32 [num_samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    at_s = np.arange(int(rng.uniform(2, 6) * SAMPLE_RATE)) / SAMPLE_RATE
    samples = np.zeros_like(at_s)
    for _ in range(rng.integers(1, 6)):
        since_s = at_s - rng.uniform(0, 0.7) * at_s[-1]
        pitch_hz = 262 * 2 ** (rng.integers(0, 20) / 12)
        for harmonic, level in ((1, 1), (2, 0.5), (2.76, 0.35), (4.2, 0.2), (5.4, 0.1)):
            ring = np.exp(-3 * since_s.clip(0) * harmonic**0.5) * (since_s >= 0)
            samples += level * ring * np.sin(2 * np.pi * pitch_hz * harmonic * since_s)
    return np.asarray(0.5 * samples / np.abs(samples).max(), np.float32)
