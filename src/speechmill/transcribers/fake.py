"""A transcriber without a model: for tests, and for dry runs of a build."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.records import Segment, Speech, Transcript
from speechmill.text.figures import compression_ratio

__all__ = ["FakeTranscriber"]

_SYLLABLES = ("ba", "do", "fi", "ga", "hu", "ka", "lo", "mi", "ne", "pu", "ra", "so", "tu", "ve")
_MAX_WORDS = 32  # as many as the digest has bytes for


class FakeTranscriber:
    """Words drawn from a hash of the samples: the same samples give the same words.

    A waveform of zeros, or an empty one, gives "".

    Args:
        language: of each transcript.
        seconds: the least time that each waveform takes.
    """

    sample_rate = 16_000
    max_speech_s = None
    needs_voice = False

    def __init__(self, *, language: str | None = None, seconds: float = 0.0) -> None:
        self._language = language
        self._seconds = seconds

    @classmethod
    def open(cls, model: str, language: str | None) -> FakeTranscriber:
        """Make the fake of a model name: ``fake:0.05`` takes 0.05 s per waveform, others none.

        Raises:
            JobError: what follows ``fake:`` is no number of seconds.
        """
        kind, _, seconds = model.partition(":")
        if kind != "fake" or not seconds:
            return cls(language=language)
        try:
            return cls(language=language, seconds=float(seconds))
        except ValueError:
            raise JobError(f"{model!r}: what follows 'fake:' must be seconds, as 0.05") from None

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text."""
        return {"transcriber": "fake", "version": 1, "language": self._language}

    @property
    def provenance(self) -> Mapping[str, str]:
        """What made the text."""
        return {"transcriber_engine": "fake"}

    def transcribe(self, speech: Sequence[Speech]) -> list[Transcript]:
        """Transcribe each stretch of speech."""
        return [self._transcribe(one.samples) for one in speech]

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:
        """English, or nothing where the language was told."""
        return ("en", 1.0) if speech and not self._language else None

    def _transcribe(self, waveform: NDArray[np.float32]) -> Transcript:
        if self._seconds:
            time.sleep(self._seconds)
        if not waveform.any():
            return Transcript("", language=self._language, no_speech_prob=1.0)
        digest = hashlib.blake2b(np.ascontiguousarray(waveform).data).digest()
        duration_s = len(waveform) / self.sample_rate
        num_words = min(_MAX_WORDS, 1 + int(2 * duration_s))
        text = " ".join(
            _SYLLABLES[a % len(_SYLLABLES)] + _SYLLABLES[b % len(_SYLLABLES)]
            for a, b in zip(digest[:num_words], digest[_MAX_WORDS:], strict=False)
        )
        avg_logprob = -digest[0] / 256
        return Transcript(
            text,
            language=self._language or "en",
            language_probability=1.0,
            avg_logprob=avg_logprob,
            no_speech_prob=0.0,
            compression_ratio=compression_ratio(text),
            segments=(Segment(0.0, duration_s, text, avg_logprob, 0.0),),
        )
