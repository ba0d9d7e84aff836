"""Segment a recording into rows, and each row into the pieces that are transcribed in one go.

A row is an utterance, or the whole recording. Its pieces are what the transcriber is given, none
longer than it accepts. A stretch that must be cut is cut at its best pause or, where it has none,
in a dip of voice and level between words. No voiced frame is lost or given twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from speechmill.speech.speaker_change import CepstralSums, speaker_change
from speechmill.speech.voice import FRAME, SAMPLE_RATE, Voice, VoiceOptions, voice_spans

__all__ = ["Piece", "Row", "SegmentOptions", "Segmentation", "keep_whole", "must_listen", "segment"]

FRAME_S: Final = FRAME / SAMPLE_RATE

Mode = Literal["auto", "vad", "none"]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """The limits of segmentation. All of them shape rows, so all are in the recipe.

    The joining was measured with Whisper base on LibriSpeech utterances joined to one file: cut at
    every pause of half a second 11.2 % word errors, at the utterances' own ends 10.5 %, joined up
    to 8 s 8.8 %, up to 12 or 15 s 9.1 %.
    """

    short_s: float = 8.0
    """An utterance that is shorter is joined with its nearest neighbour: Whisper understands a
    sentence or two better than a few words …"""
    join_s: float = 2.0
    """… unless the pause between them is longer than this, …"""
    max_change: float = 0.85
    """… or another speaker begins: the criterion of ``speaker_change``.

    Over 242 utterances of some 80 readers it takes 1 to 5 % of pairs of one reader for two, and
    misses 30, 6, 2 and 0.1 % of pairs of two, of 1, 2, 4 and 6 s each.
    """
    min_s: float = 2.0
    """Cutting a long span leaves no shorter piece at its end."""
    max_s: float = 30.0
    """No utterance is longer, and no recording that ``auto`` keeps whole."""
    min_pause_s: float = 0.5
    """A pause of this length ends an utterance."""
    pad_s: float = 0.3
    """What is kept of a pause on either side of an utterance, or half of the pause if less."""
    cut_windows_s: tuple[float, ...] = (0.1, 0.3, 1.0)
    """A cut lies where, over windows of these lengths around it, there is least voice …"""
    cut_level_weight: float = 0.5
    """… and sound, weighted by this against the voice …"""
    cut_range_db: float = 40.0
    """… and counts as none this far below the loudest. How a cut is found hardly matters:
    6.5 to 6.7 % word errors by voice, by level, and with any window of these."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """The options as JSON values."""
        return {**asdict(self), "cut_windows_s": list(self.cut_windows_s)}


@dataclass(frozen=True, slots=True)
class Piece:
    """A span that is transcribed in one go, in seconds from the recording's start.

    ``voiced`` are its stretches with a voice, in order and disjoint; None where voice activity was
    not computed.
    """

    start_s: float
    end_s: float
    voiced: tuple[Span, ...] | None = None

    @property
    def voiced_s(self) -> float:
        """Seconds of voice; all of it where voice activity was not computed."""
        spans = ((self.start_s, self.end_s),) if self.voiced is None else self.voiced
        return sum(end - start for start, end in spans)


@dataclass(frozen=True, slots=True)
class Row:
    """A future row, in seconds from the recording's start; without pieces where nobody speaks."""

    start_s: float
    end_s: float
    pieces: tuple[Piece, ...]

    @property
    def voiced_s(self) -> float | None:
        """Seconds of voice; None where voice activity was not computed."""
        if any(piece.voiced is None for piece in self.pieces):
            return None
        return sum(piece.voiced_s for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A recording's rows, at least one, in order and disjoint; and the highest probability of a
    voice in it (None where voice activity was not computed)."""

    rows: tuple[Row, ...]
    highest: float | None = None


def _cut_at_silences(mode: Mode, duration_s: float, options: SegmentOptions) -> bool:
    """Whether a recording is cut into utterances."""
    return mode == "vad" or (mode == "auto" and duration_s > options.max_s)


def must_listen(
    mode: Mode,
    duration_s: float,
    options: SegmentOptions,
    *,
    needs_voice: bool,
    max_speech_s: float | None,
) -> bool:
    """Whether the rows and pieces of a recording depend on its voice activity."""
    too_long = max_speech_s is not None and duration_s > max_speech_s
    return needs_voice or too_long or _cut_at_silences(mode, duration_s, options)


def keep_whole(duration_s: float) -> Segmentation:
    """Segment a recording into one row of one piece, without voice activity."""
    return Segmentation((Row(0.0, duration_s, (Piece(0.0, duration_s),)),))


def segment(
    voice: Voice,
    mode: Mode,
    options: SegmentOptions,
    voice_options: VoiceOptions,
    max_speech_s: float | None = None,
) -> Segmentation:
    """Segment a recording by its voice activity.

    The rows hold every frame that may be voiced, except in stretches without a frame above the
    threshold. A recording without a voice is one row without pieces.
    """
    duration_s, highest = voice.duration_s, voice.highest
    if highest < voice_options.threshold:
        return Segmentation((Row(0.0, duration_s, ()),), highest)
    voiced = _runs(voice.probabilities >= voice_options.span_threshold)
    longest_s = min(options.max_s, max_speech_s or options.max_s)
    if _cut_at_silences(mode, duration_s, options):
        spans = _utterances(voice, voiced, longest_s, options, voice_options)
        pieces = _pieces(spans, voiced, duration_s)
        return Segmentation(tuple(Row(p.start_s, p.end_s, (p,)) for p in pieces), highest)
    spans = voice_spans(voice, voice_options)
    if max_speech_s is not None and any(end - start > max_speech_s for start, end in spans):
        spans = _utterances(voice, voiced, longest_s, options, voice_options)
    return Segmentation((Row(0.0, duration_s, _pieces(spans, voiced, duration_s)),), highest)


def _runs(voiced: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find the runs of voiced frames, [num_runs, 2]: first frame, and the one after the last."""
    edges = np.flatnonzero(np.diff(np.pad(voiced.astype(np.int8), 1)))
    return edges.reshape(-1, 2)


def _utterances(
    voice: Voice,
    voiced: NDArray[np.int64],
    longest_s: float,
    options: SegmentOptions,
    voice_options: VoiceOptions,
) -> list[Span]:
    """Find the utterances of a recording, each with part of the pauses around it."""
    inner_s = longest_s - 2 * min(options.pad_s, longest_s / 8)
    spans = [
        span
        for first, end in _join_runs(voiced, int(inner_s / FRAME_S), voice, options, voice_options)
        if voice.probabilities[first:end].max() >= voice_options.threshold
        for span in _split_long((first * FRAME_S, end * FRAME_S), inner_s, voice, options)
    ]
    return _pad(spans, voice.duration_s, (longest_s - inner_s) / 2)


def _join_runs(
    runs: NDArray[np.int64],
    longest: int,
    voice: Voice,
    options: SegmentOptions,
    voice_options: VoiceOptions,
) -> list[tuple[int, int]]:
    """Join runs across short pauses, and then short ones with their nearest neighbour; in frames,
    as ``_runs``. No joined span exceeds ``longest``, unless a part of it does."""
    least, reach = round(options.short_s / FRAME_S), round(options.join_s / FRAME_S)
    spans: list[tuple[int, int]] = []
    for first, end in runs.tolist():
        if spans and (first - spans[-1][1]) * FRAME_S < options.min_pause_s:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((first, end))
    if len(spans) < 2:
        return spans
    is_voice = voice.probabilities >= voice_options.threshold
    speakers = [CepstralSums.of(voice.cepstra[a:b][is_voice[a:b]]) for a, b in spans]
    before, after = list(range(-1, len(spans) - 1)), list(range(1, len(spans) + 1))
    pairs: list[tuple[int, int, int, int]] = []  # pause, length together, both indices

    def weigh(left: int, right: int) -> None:
        if left < 0 or right >= len(spans):
            return
        (first, middle), (next_first, end) = spans[left], spans[right]
        pause, together = next_first - middle, end - first
        lengths = middle - first, end - next_first
        fits = together <= longest or max(lengths) > longest  # which is cut in any case
        if (
            pause <= reach
            and min(lengths) < least
            and fits
            and speaker_change(speakers[left], speakers[right]) <= options.max_change
        ):
            heapq.heappush(pairs, (pause, together, left, right))

    for left in range(len(spans) - 1):
        weigh(left, left + 1)
    while pairs:
        _, together, left, right = heapq.heappop(pairs)
        if after[left] != right or spans[right][1] - spans[left][0] != together:
            continue  # one of them has been joined with another meanwhile
        spans[left] = spans[left][0], spans[right][1]
        speakers[left] += speakers[right]
        after[left], after[right] = after[right], -1
        if after[left] < len(spans):
            before[after[left]] = left
        weigh(before[left], left)
        weigh(left, after[left])
    return [spans[i] for i in range(len(spans)) if after[i] >= 0]


def _split_long(span: Span, longest_s: float, voice: Voice, options: SegmentOptions) -> list[Span]:
    """Cut a span into spans of at most ``longest_s``, each at the best place in its latter half."""
    start_s, end_s = span
    spans = []
    while end_s - start_s > longest_s:
        first = int(np.ceil((start_s + longest_s / 2) / FRAME_S))
        last_s = min(start_s + longest_s, end_s - min(options.min_s, longest_s / 4))
        cut_s = _best_cut(first, int(last_s / FRAME_S), voice, options) * FRAME_S
        spans.append((start_s, cut_s))
        start_s = cut_s
    return [*spans, (start_s, end_s)]


def _best_cut(first: int, last: int, voice: Voice, options: SegmentOptions) -> int:
    """Find the frame in first … last with the least voice and sound around its start."""
    reach = round(max(options.cut_windows_s) / FRAME_S) + 1
    begin, end = max(0, first - reach), min(last + reach, len(voice.probabilities))
    levels = voice.levels_db[begin:end]
    sound = np.clip(1 + (levels - np.percentile(levels, 95)) / options.cut_range_db, 0.0, 1.0)
    activity = voice.probabilities[begin:end] + options.cut_level_weight * sound
    sums = np.concatenate(([0.0], np.cumsum(activity, dtype=np.float64)))
    at = np.arange(first, last + 1) - begin
    cost = np.zeros(len(at))
    for window_s in options.cut_windows_s:
        half = max(1, round(window_s / FRAME_S / 2))
        low, high = np.maximum(at - half, 0), np.minimum(at + half, len(activity))
        cost += (sums[high] - sums[low]) / (high - low)
    return first + int(np.argmin(cost))


def _pad(utterances: Sequence[Span], duration_s: float, pad_s: float) -> list[Span]:
    """Extend utterances into the pauses around them; they stay disjoint."""
    ends_s = [-np.inf, *(end_s for _, end_s in utterances)]
    starts_s = [*(start_s for start_s, _ in utterances), np.inf]
    pads_s = [min((a - b) / 2, pad_s) for a, b in zip(starts_s, ends_s, strict=True)]
    return [
        (max(0.0, start_s - pads_s[i]), min(duration_s, end_s + pads_s[i + 1]))
        for i, (start_s, end_s) in enumerate(utterances)
    ]


def _pieces(
    spans: Sequence[Span], voiced: NDArray[np.int64], duration_s: float
) -> tuple[Piece, ...]:
    """Make a piece of each span, with its voiced stretches."""
    runs = np.minimum(voiced * FRAME_S, duration_s)
    pieces = []
    for start_s, end_s in spans:
        inside = runs[(runs[:, 1] > start_s) & (runs[:, 0] < end_s)]
        clipped = np.clip(inside, start_s, end_s).tolist()
        pieces.append(Piece(start_s, end_s, tuple((first, last) for first, last in clipped)))
    return tuple(pieces)
