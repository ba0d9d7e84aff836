"""Whether a text accounts for all the voice of a stretch of speech.

Told to give no timestamps, Whisper at times ends its text with a sentence though others follow
after a pause, or leaves one out, and is as sure of the rest as ever. The attention that its decoder
pays to the audio shows it: by the best monotonic way through it, a token or two last as long as all
that was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from speechmill.records import Speech

__all__ = ["divided", "longest_pause", "longest_untold"]

Span = tuple[float, float]


def longest_untold(
    starts_s: Iterable[float], voiced: Sequence[Span], duration_s: float
) -> tuple[float, Span]:
    """The most voice, in seconds, between the starts of two neighbouring tokens, and where it is:
    (start_s, end_s). Before the first token counts, and after the start of the last.

    Args:
        starts_s: when each token begins, in order, in seconds from the first sample.
        voiced: the stretches of voice, in order and apart.
        duration_s: where the stretch of speech ends.
    """
    edges = [0.0, *starts_s, duration_s]
    spans = list(pairwise(edges))
    voices = [sum(max(0.0, min(b, end) - max(a, start)) for a, b in voiced) for start, end in spans]
    most = max(range(len(spans)), key=voices.__getitem__)
    return voices[most], spans[most]


def longest_pause(voiced: Sequence[Span], within: Span | None = None) -> Span | None:
    """The longest pause between two stretches of voice, of those that reach into ``within``; None
    if there is none."""
    start_s, end_s = within or (float("-inf"), float("inf"))
    pauses = [
        (end, start) for (_, end), (start, _) in pairwise(voiced) if end < end_s and start > start_s
    ]
    return max(pauses, key=lambda pause: pause[1] - pause[0], default=None)


def divided(speech: Speech, at_s: float, sample_rate: int) -> tuple[Speech, Speech]:
    """A stretch of speech as two, the second of which begins at ``at_s``."""
    at = round(at_s * sample_rate)
    voiced = speech.voiced or ()
    before = tuple((a, min(b, at_s)) for a, b in voiced if a < at_s)
    after = tuple((max(a - at_s, 0.0), b - at_s) for a, b in voiced if b > at_s)
    return (
        replace(speech, samples=speech.samples[:at], voiced=before),
        replace(speech, samples=speech.samples[at:], voiced=after),
    )
