"""Whether a text accounts for all the voice of a stretch of speech.

Told to give no timestamps, Whisper at times ends its text with a sentence though others follow
after a pause, or leaves one out, and is as sure of the rest as ever. Its cross-attention shows it:
by the best monotonic path through it, one token lasts as long as all that was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from speechmill.records import Speech

__all__ = ["cuts_around", "longest_pause", "longest_untold", "pauses", "split_at"]

Span = tuple[float, float]


def longest_untold(
    starts_s: Iterable[float], voiced: Sequence[Span], duration_s: float
) -> tuple[float, Span]:
    """Find the most voice, in seconds, between the starts of two neighbouring tokens, and its span.

    What is before the first token counts, and what is after the start of the last.

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


def pauses(voiced: Sequence[Span], at_least_s: float = 0.0) -> list[Span]:
    """Find the pauses between stretches of voice, in order, of at least ``at_least_s``."""
    between = [(end_s, start_s) for (_, end_s), (start_s, _) in pairwise(voiced)]
    return [(a, b) for a, b in between if b - a >= at_least_s]


def cuts_around(untold: Span, voiced: Sequence[Span], pauses: Sequence[Span]) -> list[float]:
    """Choose where to cut voice that was left out from what is transcribed before and after it.

    The cuts, in seconds, are the middles of the first and the last pause that reach into it; there
    is none where no pause does.
    """
    start_s, end_s = untold
    inside = [(a + b) / 2 for a, b in pauses if a < end_s and b > start_s]
    if not inside:
        return []
    is_first, is_last = start_s <= voiced[0][0], end_s >= voiced[-1][1]
    return sorted({*([] if is_first else inside[:1]), *([] if is_last else inside[-1:])})


def longest_pause(voiced: Sequence[Span], at_least_s: float, voice_s: float) -> list[float]:
    """Find the middle of the longest pause, of at least ``at_least_s``, with at least ``voice_s``
    of voice before it and behind it; of several as long, the first. Empty where there is none."""
    total_s = sum(end_s - start_s for start_s, end_s in voiced)
    before_s, best_s, found = 0.0, 0.0, []
    for (start_s, end_s), (next_s, _) in pairwise(voiced):
        before_s += end_s - start_s
        pause_s = next_s - end_s
        has_room = min(before_s, total_s - before_s) >= voice_s
        if has_room and pause_s >= at_least_s and pause_s > best_s:
            best_s, found = pause_s, [(end_s + next_s) / 2]
    return found


def split_at(
    speech: Speech, cuts_s: Sequence[float], sample_rate: int
) -> list[tuple[float, Speech]]:
    """Cut a stretch at ascending times in seconds. Returns each part with its start."""
    edges_s = [0.0, *cuts_s, len(speech.samples) / sample_rate]
    return [
        (start_s, _part(speech, start_s, end_s, sample_rate))
        for start_s, end_s in pairwise(edges_s)
    ]


def _part(speech: Speech, start_s: float, end_s: float, sample_rate: int) -> Speech:
    voiced = tuple(
        (max(a, start_s) - start_s, min(b, end_s) - start_s)
        for a, b in speech.voiced or ()
        if a < end_s and b > start_s
    )
    samples = speech.samples[round(start_s * sample_rate) : round(end_s * sample_rate)]
    return replace(speech, samples=samples, voiced=voiced)
