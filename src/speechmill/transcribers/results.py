"""Results of faster-whisper and CTranslate2 as transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from speechmill.records import Segment, Transcript, Word
from speechmill.text.figures import compression_ratio
from speechmill.transcribers.encoder import SpokenLanguage
from speechmill.transcribers.windows import FULL_WINDOW_S

__all__ = ["DECODING", "flags", "mean", "no_words", "transcript", "words_in_order"]

# Whisper's own defaults, spelt out because they shape the text: see openai/whisper, transcribe.py.
DECODING: Final[Mapping[str, Any]] = {
    "best_of": 5,
    "patience": 1.0,
    "compression_ratio_threshold": 2.4,
    "log_prob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "condition_on_previous_text": True,
    "prompt_reset_on_temperature": 0.5,
}
UNCERTAIN_LANGUAGE: Final = 0.5  # probability: any other language together is as likely


def flags(language_probability: float | None, **seen: bool) -> tuple[str, ...]:
    """Collect the names of the flags that hold, and ``uncertain_language`` where it does."""
    uncertain = language_probability is not None and language_probability < UNCERTAIN_LANGUAGE
    signs = {**seen, "uncertain_language": uncertain}
    return tuple(flag for flag, found in signs.items() if found)


def no_words(language: str | None, no_speech_prob: float, window_s: float | None) -> Transcript:
    """Make the transcript of a stretch without words."""
    return Transcript(
        "",
        language=language,
        no_speech_prob=no_speech_prob,
        window_s=window_s,
        flags=("no_words",),
    )


def words_in_order(found: Sequence[Any], duration_s: float) -> tuple[Word, ...]:
    """Convert faster-whisper's words; their times are clipped to be in order and in the stretch."""
    words = []
    last_s = 0.0
    for one in found:
        word = one if isinstance(one, dict) else vars(one)
        start_s = float(min(max(word["start"], last_s), duration_s))
        last_s = float(min(max(word["end"], start_s), duration_s))
        words.append(Word(word["word"].strip(), start_s, last_s, float(word["probability"])))
    return tuple(words)


def transcript(
    heard: Sequence[Any], duration_s: float, spoken: SpokenLanguage, *, words: bool
) -> Transcript:
    """Convert faster-whisper's segments (at least one, with text) to a transcript."""
    segments: list[Segment] = []
    last_s = 0.0
    for segment in heard:
        start_s = min(max(segment.start, last_s), duration_s)
        last_s = min(max(segment.end, start_s), duration_s)
        segments.append(
            Segment(
                start_s, last_s, segment.text.strip(), segment.avg_logprob, segment.no_speech_prob
            )
        )
    text = "".join(segment.text for segment in heard).strip()
    num_tokens = [len(segment.tokens) for segment in heard]
    avg_logprob = mean([segment.avg_logprob for segment in heard], num_tokens)
    ratio = compression_ratio(text)
    temperature = max(segment.temperature for segment in heard)
    return Transcript(
        text,
        language=spoken.language,
        language_probability=spoken.probability,
        avg_logprob=avg_logprob,
        no_speech_prob=mean([segment.no_speech_prob for segment in heard], num_tokens),
        compression_ratio=ratio,
        segments=tuple(segments),
        words=(
            words_in_order([word for segment in heard for word in segment.words or ()], duration_s)
            if words
            else None
        ),
        temperature=temperature,
        window_s=FULL_WINDOW_S,
        flags=flags(
            spoken.probability,
            temperature_fallback=temperature > 0,
            repetitive=ratio > DECODING["compression_ratio_threshold"],
            low_confidence=avg_logprob < DECODING["log_prob_threshold"],
        ),
    )


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Compute the (weighted) mean of at least one value."""
    return float(np.average(values, weights=weights))
