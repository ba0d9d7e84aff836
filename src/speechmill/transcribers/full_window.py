"""Whisper's own window of 30 s, through faster-whisper's ``transcribe``, with the temperature
fallback, whose random numbers start anew with each stretch, so that a rerun gives the same text."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Speech, Transcript
from speechmill.transcribers import results
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.hearing import SAMPLE_RATE, Hearing
from speechmill.transcribers.windows import FULL_WINDOW_S
from speechmill.transcribers.wording import Wording

__all__ = ["FullWindow"]


class FullWindow:
    """Transcribes one stretch of speech after the other, as faster-whisper does.

    Args:
        whisper: faster-whisper's model, on CTranslate2's that reseeds itself.
        hearing: its encoder.
        wording: its tokens.
        options: what the transcriber was told.
    """

    def __init__(
        self, whisper: Any, hearing: Hearing, wording: Wording, options: TranscriberOptions
    ) -> None:
        self._whisper = whisper
        self._hearing = hearing
        self._wording = wording
        self._options = options

    def transcribe(self, speech: Speech) -> Transcript:
        """Transcribe a stretch of speech of at most 30 s."""
        (spoken,) = self._hearing.spoken([speech], [FULL_WINDOW_S], None)
        options = self._options
        samples = np.asarray(speech.samples, np.float32)
        self._whisper.model.start(_seed(samples))
        try:
            found, _ = self._whisper.transcribe(
                samples,
                language=spoken.language,
                task=options.task,
                beam_size=options.beam_size,
                temperature=list(options.temperature),
                word_timestamps=options.words,
                initial_prompt=self._wording.initial_prompt or None,
                hotwords=self._wording.hotwords,
                suppress_tokens=[-1, *self._wording.numerals],
                **results.DECODING,
            )
            heard = list(found)
        finally:
            no_speech_probs = self._whisper.model.finish()
        if not "".join(segment.text for segment in heard).strip():
            no_speech_prob = results.mean(no_speech_probs) if no_speech_probs else 1.0
            return results.no_words(self._hearing.language, no_speech_prob, FULL_WINDOW_S)
        duration_s = len(samples) / SAMPLE_RATE
        return results.transcript(heard, duration_s, spoken, words=options.words)


def _seed(waveform: NDArray[np.float32]) -> int:
    """A seed that only the samples decide; CTranslate2 takes 2³² − 1 to mean none."""
    digest = hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=4).digest()
    return min(int.from_bytes(digest, "big"), 2**32 - 2)
