"""What Whisper's decoders give, as transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from speechmill.records import Segment, Transcript, Word
from speechmill.text.figures import compression_ratio
from speechmill.transcribers.languages import SpokenLanguage

__all__ = [
    "DECODING",
    "MAX_COMPRESSION_RATIO",
    "MIN_LOGPROB",
    "DecodedSegment",
    "decoded_segment",
    "decoded_word",
    "flags",
    "mean",
    "no_words",
    "transcript",
    "words_in_order",
]

MAX_COMPRESSION_RATIO: Final = 2.4
MIN_LOGPROB: Final = -1.0
"""Limits of the flags: Whisper's own."""

# Whisper's own defaults, spelt out because they shape the text: see openai/whisper, transcribe.py.
DECODING: Final[Mapping[str, Any]] = {
    "best_of": 5,
    "patience": 1.0,
    "compression_ratio_threshold": MAX_COMPRESSION_RATIO,
    "log_prob_threshold": MIN_LOGPROB,
    "no_speech_threshold": 0.6,
    "condition_on_previous_text": True,
    "prompt_reset_on_temperature": 0.5,
}
UNCERTAIN_LANGUAGE: Final = 0.5  # probability: any other language together is as likely


@dataclass(frozen=True, slots=True)
class DecodedSegment:
    """A segment as Whisper cuts a stretch: times in seconds from the first sample; ``text`` as
    it is decoded, with its leading space."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    num_tokens: int
    words: tuple[Word, ...] = ()


def decoded_segment(found: Mapping[str, Any]) -> DecodedSegment:
    """Convert a segment of faster-whisper or openai-whisper, given as its fields."""
    return DecodedSegment(
        float(found["start"]),
        float(found["end"]),
        found["text"],
        float(found["avg_logprob"]),
        float(found["no_speech_prob"]),
        float(found["temperature"]),
        len(found["tokens"]),
        tuple(
            decoded_word(word if isinstance(word, dict) else vars(word))
            for word in found.get("words") or ()
        ),
    )


def decoded_word(found: Mapping[str, Any]) -> Word:
    """Convert a word of faster-whisper or openai-whisper, given as its fields."""
    return Word(
        found["word"], float(found["start"]), float(found["end"]), float(found["probability"])
    )


def flags(spoken: SpokenLanguage | None, **seen: bool) -> tuple[str, ...]:
    """Collect the names of the flags that hold, and those of the language, where there is one."""
    probability = None if spoken is None else spoken.probability
    uncertain = probability is not None and probability < UNCERTAIN_LANGUAGE
    signs = {**seen, "uncertain_language": uncertain}
    found = {flag for flag, holds in signs.items() if holds}
    return tuple(sorted(found.union(() if spoken is None else spoken.flags)))


def no_words(language: str | None, no_speech_prob: float, window_s: float | None) -> Transcript:
    """Make the transcript of a stretch without words."""
    return Transcript(
        "",
        language=language,
        no_speech_prob=no_speech_prob,
        window_s=window_s,
        flags=("no_words",),
    )


def words_in_order(found: Sequence[Word], duration_s: float) -> tuple[Word, ...]:
    """Clip the times of words to be in order and in the stretch."""
    words = []
    last_s = 0.0
    for word in found:
        start_s = min(max(word.start_s, last_s), duration_s)
        last_s = min(max(word.end_s, start_s), duration_s)
        words.append(Word(word.word.strip(), start_s, last_s, word.probability))
    return tuple(words)


def transcript(
    heard: Sequence[DecodedSegment],
    duration_s: float,
    spoken: SpokenLanguage,
    *,
    window_s: float,
    words: bool,
) -> Transcript:
    """Make the transcript of segments (at least one, with text); times within it and in order."""
    segments: list[Segment] = []
    last_s = 0.0
    for one in heard:
        start_s = min(max(one.start_s, last_s), duration_s)
        last_s = min(max(one.end_s, start_s), duration_s)
        segments.append(
            Segment(start_s, last_s, one.text.strip(), one.avg_logprob, one.no_speech_prob)
        )
    text = "".join(one.text for one in heard).strip()
    num_tokens = [max(one.num_tokens, 1) for one in heard]
    avg_logprob = mean([one.avg_logprob for one in heard], num_tokens)
    ratio = compression_ratio(text)
    temperature = max(one.temperature for one in heard)
    all_words = words_in_order([word for one in heard for word in one.words], duration_s)
    return Transcript(
        text,
        language=spoken.language,
        language_probability=spoken.probability,
        language_heard=spoken.heard,
        avg_logprob=avg_logprob,
        no_speech_prob=mean([one.no_speech_prob for one in heard], num_tokens),
        compression_ratio=ratio,
        segments=tuple(segments),
        words=all_words if words else None,
        temperature=temperature,
        window_s=window_s,
        flags=flags(
            spoken,
            temperature_fallback=temperature > 0,
            repetitive=ratio > MAX_COMPRESSION_RATIO,
            low_confidence=avg_logprob < MIN_LOGPROB,
        ),
    )


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Compute the (weighted) mean of at least one value."""
    return float(np.average(values, weights=weights))
