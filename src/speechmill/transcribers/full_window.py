"""Whisper's own window of 30 s, through faster-whisper's ``transcribe``, with temperature fallback.

Its random numbers are seeded anew for each stretch, so that a rerun gives the same text.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Speech, Transcript
from speechmill.transcribers import ctranslate, results
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.encoder import SAMPLE_RATE, SpeechEncoder
from speechmill.transcribers.language_check import LanguageCheck
from speechmill.transcribers.whisper_tokens import WhisperTokens
from speechmill.transcribers.windows import FULL_WINDOW_S

__all__ = ["FullWindow"]


class FullWindow:
    """Transcribes stretches of speech one after another, as faster-whisper does.

    Args:
        whisper: faster-whisper's model, with a ``SeededModel``.
        encoder: its encoder.
        whisper_tokens: its prompts and tokenizers.
        options: of the transcriber.
    """

    def __init__(
        self,
        whisper: Any,
        encoder: SpeechEncoder,
        whisper_tokens: WhisperTokens,
        options: TranscriberOptions,
    ) -> None:
        self._whisper = whisper
        self._encoder = encoder
        self._tokens = whisper_tokens
        self._options = options
        self._check = LanguageCheck(encoder)

    def transcribe(self, speech: Speech, *, check_language: bool = True) -> Transcript:
        """Transcribe a stretch of speech of at most 30 s.

        ``check_language`` asks for the language that is heard, besides that which is transcribed.
        """
        (spoken,) = self._encoder.languages_of([speech], [FULL_WINDOW_S], None)
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
                initial_prompt=self._tokens.initial_prompt or None,
                hotwords=self._tokens.hotwords,
                suppress_tokens=[-1, *self._tokens.numerals],
                **results.DECODING,
            )
            heard = [results.decoded_segment(vars(segment)) for segment in found]
        finally:
            generated = self._whisper.model.finish()
        if not "".join(segment.text for segment in heard).strip():
            no_speech_probs = generated.no_speech_probs
            no_speech_prob = results.mean(no_speech_probs) if no_speech_probs else 1.0
            return results.no_words(self._encoder.language, no_speech_prob, FULL_WINDOW_S)
        if check_language:
            (encoded,) = ctranslate.to_array(generated.encoded)
            (spoken,) = self._check.check([speech], [spoken], [encoded])
        duration_s = len(samples) / SAMPLE_RATE
        return results.transcript(
            heard, duration_s, spoken, window_s=FULL_WINDOW_S, words=options.words
        )


def _seed(waveform: NDArray[np.float32]) -> int:
    """Derive a seed from the samples alone; 2³² − 1 means none to CTranslate2."""
    digest = hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=4).digest()
    return min(int.from_bytes(digest, "big"), 2**32 - 2)
