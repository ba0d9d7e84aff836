"""Rows and pieces: in order, apart, no longer than they may be, and no voice lost or doubled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.speech.segmentation import (
    FRAME_S,
    Piece,
    Row,
    Segmentation,
    SegmentOptions,
    keep_whole,
    must_listen,
    segment,
)
from speechmill.speech.speaker_change import NUM_CEPSTRA
from speechmill.speech.voice import SAMPLE_RATE, Voice, VoiceOptions, listen
from tests.support.weights import speech

OPTIONS, VOICE = SegmentOptions(), VoiceOptions()
CLIPS = [f"speech/fleurs_{lang}/fleurs-{lang}-00{i}.ogg" for lang in ("de", "es") for i in (1, 2)]

# Probabilities of a voice that go on for some frames: sure, doubtful, none.
stretches = st.tuples(
    st.one_of(st.integers(1, 60), st.integers(60, 1500)), st.sampled_from([0.0, 0.1, 0.3, 0.9])
)
tracks = st.lists(stretches, min_size=1, max_size=30)


def track(*lengths_and_probabilities: tuple[float, float], levels: float = 0.0) -> Voice:
    """A voice of stretches (seconds, probability) at one level."""
    probabilities = np.concatenate(
        [np.full(round(s / FRAME_S), p, np.float32) for s, p in lengths_and_probabilities]
    )
    return heard(probabilities, np.full(len(probabilities), levels, np.float32))


def heard(probabilities: NDArray[np.float32], levels: NDArray[np.float32] | None = None) -> Voice:
    levels = np.zeros_like(probabilities) if levels is None else levels
    timbre = np.zeros((len(probabilities), NUM_CEPSTRA), np.float16)
    return Voice(probabilities, levels, timbre, len(probabilities) * FRAME_S)


def cut(voice: Voice, mode: str = "vad", options: SegmentOptions = OPTIONS) -> Segmentation:
    return segment(voice, mode, options, VOICE, 30.0)  # type: ignore[arg-type]


def bounds(found: Sequence[Row | Piece]) -> list[tuple[float, float]]:
    return [(one.start_s, one.end_s) for one in found]


def times_inside(
    probabilities: NDArray[np.float32], spans: list[tuple[float, float]]
) -> NDArray[np.int64]:
    """How many of the spans hold each frame."""
    middles_s = (np.arange(len(probabilities)) + 0.5) * FRAME_S
    inside = [(a <= middles_s) & (middles_s < b) for a, b in spans]
    return np.asarray(np.sum(inside, axis=0), np.int64)


def check_spans(spans: list[tuple[float, float]], voice: Voice) -> None:
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= voice.duration_s
    assert all(0 < end - start <= 30 + 1e-6 for start, end in spans)


@given(tracks)
def test_each_voiced_frame_is_in_exactly_one_row_and_rows_are_apart(
    stretches: list[tuple[int, float]],
) -> None:
    probabilities = np.concatenate([np.full(n, p, np.float32) for n, p in stretches])
    voice = heard(probabilities)
    found = cut(voice)
    if voice.highest < VOICE.threshold:
        assert found.rows == (Row(0.0, voice.duration_s, ()),)
        return
    spans = bounds(found.rows)
    check_spans(spans, voice)
    inside = times_inside(probabilities, spans)
    assert (inside <= 1).all()
    assert (inside[probabilities >= VOICE.threshold] == 1).all()
    assert all(row.voiced_s for row in found.rows)
    assert bounds([p for row in found.rows for p in row.pieces]) == spans


@given(tracks)
def test_rows_are_of_few_words_only_where_the_speech_stands_alone(
    stretches: list[tuple[int, float]],
) -> None:
    probabilities = np.concatenate([np.full(n, p * (p > 0.4), np.float32) for n, p in stretches])
    rows = cut(heard(probabilities)).rows
    voiced = [
        (row.pieces[0].voiced[0][0], row.pieces[0].voiced[-1][1])
        for row in rows
        if row.pieces and row.pieces[0].voiced
    ]
    for i, (start_s, end_s) in enumerate(voiced):
        if end_s - start_s < OPTIONS.short_s - FRAME_S:
            for first_s, last_s in voiced[max(0, i - 1) : i] + voiced[i + 1 : i + 2]:
                gap_s = max(first_s - end_s, start_s - last_s)
                together_s = max(end_s, last_s) - min(start_s, first_s)
                assert gap_s > OPTIONS.join_s - FRAME_S or together_s > 29.3


@given(tracks, st.sampled_from([5.0, 30.0]))
def test_whole_recordings_have_pieces_that_hold_each_voice_once(
    stretches: list[tuple[int, float]], max_speech_s: float
) -> None:
    probabilities = np.concatenate([np.full(n, p, np.float32) for n, p in stretches])
    voice = heard(probabilities)
    found = segment(voice, "none", OPTIONS, VOICE, max_speech_s)
    (row,) = found.rows
    assert (row.start_s, row.end_s) == (0.0, voice.duration_s)
    if voice.highest < VOICE.threshold:
        assert row.pieces == ()
        return
    spans = bounds(row.pieces)
    check_spans(spans, voice)
    assert max(end - start for start, end in spans) <= max_speech_s + 1e-6
    inside = times_inside(probabilities, spans)
    assert (inside <= 1).all()
    assert (inside[probabilities >= VOICE.threshold] == 1).all()
    for piece in row.pieces:  # nothing is made up where nobody speaks
        assert piece.voiced
        assert all(piece.start_s <= a < b <= piece.end_s for a, b in piece.voiced)
    assert sum(p.voiced_s for p in row.pieces) == pytest.approx(row.voiced_s)
    if voice.duration_s <= max_speech_s:  # then what is doubtful is kept, too
        assert (inside[probabilities >= VOICE.span_threshold] == 1).all()
        num_voiced = int((probabilities >= VOICE.span_threshold).sum())
        assert row.voiced_s == pytest.approx(num_voiced * FRAME_S)


def test_pauses_of_half_a_second_part_utterances_and_shorter_ones_do_not() -> None:
    voice = track((9, 0.9), (0.4, 0), (9, 0.9), (0.6, 0), (9, 0.9))
    (first, second) = bounds(cut(voice).rows)
    assert first == pytest.approx((0, 18.7), abs=0.05)  # half of the pause: less than 0.3 s
    assert second == pytest.approx((18.7, 28), abs=0.05)
    assert first[1] <= second[0]


def test_a_short_utterance_goes_to_its_nearer_neighbour() -> None:
    voice = track((9, 0.9), (1.5, 0), (1, 0.9), (0.7, 0), (9, 0.9), (4, 0), (1, 0.9), (9, 0))
    rows = bounds(cut(voice).rows)
    assert rows[0] == pytest.approx((0, 9.3), abs=0.05)
    assert rows[1] == pytest.approx((10.2, 21.5), abs=0.05)
    assert rows[2] == pytest.approx((24.9, 26.5), abs=0.05)  # alone, so it stays short


def test_a_short_utterance_is_not_joined_with_another_speakers() -> None:
    """Of three short utterances, two of one speaker are joined, though the third is nearer."""
    voice = track((4, 0.9), (1.5, 0), (4, 0.9), (0.7, 0), (4, 0.9))
    rng = np.random.default_rng(0)
    timbre = rng.standard_normal((len(voice.probabilities), NUM_CEPSTRA)).astype(np.float16)
    timbre[round(9.8 / FRAME_S) :] += 2
    rows = bounds(cut(replace(voice, cepstra=timbre)).rows)
    assert rows[0] == pytest.approx((0, 9.8), abs=0.05)
    assert rows[1] == pytest.approx((9.9, 14.2), abs=0.05)
    assert len(cut(voice).rows) == 1  # of one speaker, all three


def test_what_is_nowhere_surely_a_voice_is_no_row() -> None:
    voice = track((5, 0.9), (9, 0), (1, 0.3), (9, 0), (5, 0.9))
    assert len(cut(voice).rows) == 2
    nobody = track((60, 0.3))
    assert cut(nobody).rows == (Row(0.0, nobody.duration_s, ()),)
    assert cut(nobody).highest == pytest.approx(0.3)


@pytest.mark.parametrize("mode", ["vad", "none"])
def test_half_a_minute_without_a_pause_is_cut_where_the_voice_is_faintest(mode: str) -> None:
    voice = track((20, 0.9), (0.1, 0.4), (25, 0.9), (0.1, 0.5), (5, 0.9))
    pieces = [p for row in cut(voice, mode).rows for p in row.pieces]
    assert pieces[0].end_s == pytest.approx(20.05, abs=0.1)
    assert len(pieces) == 3 if pieces[1].end_s < 45 else 2


def test_where_the_voice_is_even_the_cut_is_where_it_is_quietest() -> None:
    voice = track((40, 0.9))
    levels = np.full(len(voice.probabilities), -20, np.float32)
    levels[round(22 / FRAME_S) : round(22.3 / FRAME_S)] = -50
    first, second = cut(replace(voice, levels_db=levels)).rows
    assert first.end_s == pytest.approx(22.15, abs=0.1)
    assert first.end_s == second.start_s


def test_a_longer_pause_is_cut_rather_than_a_shorter_one() -> None:
    voice = track((17, 0.9), (0.45, 0), (8, 0.9), (0.2, 0), (10, 0.9))
    assert cut(voice).rows[0].end_s == pytest.approx(17.22, abs=0.1)


def test_auto_cuts_what_is_longer_than_half_a_minute() -> None:
    short, long = track((14, 0.9), (1, 0), (14, 0.9)), track((14, 0.9), (1, 0), (16, 0.9))
    assert bounds(cut(short, "auto").rows) == [(0.0, short.duration_s)]
    assert len(cut(short, "auto").rows[0].pieces) == 1
    assert len(cut(long, "auto").rows) == 2
    assert len(cut(short, "vad").rows) == 2


def test_who_needs_no_voice_is_not_listened_for_unless_something_is_cut() -> None:
    def listens(mode: str, duration_s: float, **about: object) -> bool:
        told = {"needs_voice": False, "max_speech_s": None, **about}
        return must_listen(mode, duration_s, OPTIONS, **told)  # type: ignore[arg-type]

    assert not listens("auto", 30.0)
    assert not listens("none", 3600.0)
    assert listens("auto", 30.1)
    assert listens("vad", 3.0)
    assert listens("none", 31.0, max_speech_s=30.0)
    assert listens("none", 3.0, needs_voice=True)
    (row,) = keep_whole(7.0).rows
    assert row.voiced_s is None
    assert row.pieces == (Piece(0.0, 7.0, None),)


def joined(paths: Sequence[str], gap_s: float, noise_db: float) -> NDArray[np.float32]:
    """Clips without the silence around them, with gaps between, in white noise."""
    parts = []
    for path in paths:
        clip = speech(path)
        loud = np.flatnonzero(np.abs(clip) > 0.03 * np.abs(clip).max())
        parts += [clip[loud[0] : loud[-1]], np.zeros(int(gap_s * SAMPLE_RATE), np.float32)]
    waveform = np.concatenate(parts)
    noise = np.random.default_rng(0).standard_normal(len(waveform)) * 10 ** (noise_db / 20)
    return (waveform + noise).astype(np.float32)


@pytest.mark.parametrize("noise_db", [-90, -45])
@pytest.mark.parametrize("gap_s", [0.2, 0.7])
def test_real_speech_is_cut_where_it_is_quiet(gap_s: float, noise_db: float) -> None:
    waveform = joined(CLIPS, gap_s, noise_db)
    voice = listen(lambda start, end: waveform[start:end], len(waveform), VOICE)
    found = cut(voice, "auto")
    spans = bounds(found.rows)
    check_spans(spans, voice)
    assert (times_inside(voice.probabilities, spans)[voice.probabilities >= 0.4] == 1).all()
    assert all(OPTIONS.min_s <= end - start for start, end in spans)
    speech_rms = np.sqrt(np.mean(waveform**2))
    for cut_s in [end for _, end in spans[:-1]] + [start for start, _ in spans[1:]]:
        at = int(cut_s * SAMPLE_RATE)
        around = waveform[at - 400 : at + 400]
        assert np.sqrt(np.mean(around**2)) < 0.35 * speech_rms, cut_s
