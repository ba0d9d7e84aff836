"""Join the transcripts of a row's pieces to the row's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from speechmill.records import Transcript
from speechmill.text.figures import repetition

__all__ = ["NO_SPACES", "join_texts", "join_transcripts", "no_voice"]

NO_TEXT: Final = frozenset({"no_voice", "no_words"})
"""Flags of pieces without text; a row that has some does not carry them."""

NO_SPACES: Final = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"  # CJK, kana
    "\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no spaces between words, with their punctuation."""


def no_voice(language: str | None, highest: float) -> Transcript:
    """Make the transcript of a row without a voice, whose highest probability was ``highest``."""
    return Transcript("", language=language, no_speech_prob=1.0 - highest, flags=("no_voice",))


def join_texts(texts: Sequence[str]) -> str:
    """Join texts in order, with a space between two unless both scripts are written without."""
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        bare = joined and NO_SPACES.match(joined[-1]) and NO_SPACES.match(text[0])
        joined += text if bare or not joined else f" {text}"
    return joined


def join_transcripts(starts_s: Sequence[float], transcripts: Sequence[Transcript]) -> Transcript:
    """Join the transcripts of a row's pieces, at least one, in order.

    Their times count from the first sample of the piece; those of the result from the start of
    the recording, where the pieces begin at ``starts_s``. Means are weighted by the length of
    the text, in bytes; where no piece has a text, ``no_speech_prob`` is the plain mean.
    """
    moved = [_shifted(t, start_s) for start_s, t in zip(starts_s, transcripts, strict=True)]
    if len(moved) == 1:
        return moved[0]
    text = join_texts([t.text for t in moved])
    told = [t for t in moved if t.text] or moved
    weights = [max(1, len(t.text.encode())) for t in told]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
        return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None

    flags = {flag for t in moved for flag in t.flags}
    words = [t.words for t in moved if t.words is not None]
    return Transcript(
        text,
        language=told[0].language,
        language_probability=told[0].language_probability,
        language_heard=_other_first([(t.language, t.language_heard) for t in told]),
        avg_logprob=mean([t.avg_logprob for t in told]),
        no_speech_prob=mean([t.no_speech_prob for t in told]),
        # Both grow with the length of a text, so those of an hour say nothing.
        compression_ratio=_max_known([t.compression_ratio for t in told]),
        repetition=max(repetition(t.text) if t.repetition is None else t.repetition for t in told),
        segments=tuple(s for t in moved for s in t.segments),
        words=tuple(w for some in words for w in some) if words else None,
        temperature=_max_known([t.temperature for t in told]),
        window_s=_max_known([t.window_s for t in told]),
        flags=tuple(sorted(flags - NO_TEXT if text else flags)),
    )


def _shifted(transcript: Transcript, by_s: float) -> Transcript:
    if not by_s:
        return transcript
    words = transcript.words
    return replace(
        transcript,
        segments=tuple(
            replace(s, start_s=s.start_s + by_s, end_s=s.end_s + by_s) for s in transcript.segments
        ),
        words=words
        and tuple(replace(w, start_s=w.start_s + by_s, end_s=w.end_s + by_s) for w in words),
    )


def _other_first(pairs: Sequence[tuple[str | None, str | None]]) -> str | None:
    """Choose the language that was heard in pieces: one in which a piece is not transcribed, if
    there is one."""
    heard = [(own != other, other) for own, other in pairs if other is not None]
    return max(heard, key=lambda one: one[0])[1] if heard else None


def _max_known(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)
