"""The transcripts of a row's pieces become the row's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.records import Segment, Transcript, Word
from speechmill.text.figures import repetition
from speechmill.text.transcripts import join_texts, join_transcripts, no_voice

ONE = Transcript(
    "Lobsters and",
    language="en",
    language_probability=0.9,
    avg_logprob=-0.2,
    no_speech_prob=0.1,
    compression_ratio=0.8,
    segments=(Segment(0.5, 2.0, "Lobsters and", -0.2, 0.1),),
    words=(Word("Lobsters", 0.5, 1.5, 0.9), Word("and", 1.5, 2.0, 0.8)),
    temperature=0.0,
    window_s=3.0,
)
TWO = Transcript(
    "lobsters",
    language="en",
    language_probability=0.9,
    avg_logprob=-0.7,
    no_speech_prob=0.6,
    compression_ratio=0.5,
    segments=(Segment(0.0, 1.0, "lobsters", -0.7, 0.6),),
    words=(Word("lobsters", 0.0, 1.0, 0.7),),
    temperature=0.4,
    window_s=2.0,
    flags=("temperature_fallback",),
)
NOTHING = Transcript("", language="en", no_speech_prob=0.8, words=(), flags=("no_words",))


def test_a_single_piece_is_only_moved_to_the_recordings_clock() -> None:
    assert join_transcripts([0.0], [ONE]) == ONE
    moved = join_transcripts([100.0], [ONE])
    assert moved.segments[0].start_s == 100.5
    assert moved.words is not None
    assert [w.end_s for w in moved.words] == [101.5, 102.0]
    assert (moved.text, moved.flags, moved.avg_logprob) == (ONE.text, ONE.flags, ONE.avg_logprob)


def test_pieces_follow_each_other_on_the_recordings_clock() -> None:
    row = join_transcripts([10.0, 40.0], [ONE, TWO])
    assert row.text == "Lobsters and lobsters"
    assert [(s.start_s, s.end_s) for s in row.segments] == [(10.5, 12.0), (40.0, 41.0)]
    assert row.words is not None
    assert [w.start_s for w in row.words] == [10.5, 11.5, 40.0]
    assert row.avg_logprob == pytest.approx((-0.2 * 12 - 0.7 * 8) / 20)  # by bytes of text
    assert row.no_speech_prob == pytest.approx((0.1 * 12 + 0.6 * 8) / 20)
    assert row.compression_ratio == 0.8  # the highest of the pieces'
    assert row.repetition == 0.0
    assert (row.temperature, row.window_s) == (0.4, 3.0)
    assert (row.language, row.language_probability) == ("en", 0.9)
    assert row.flags == ("temperature_fallback",)


def test_a_piece_without_words_leaves_the_rows_figures_alone() -> None:
    row = join_transcripts([0.0, 10.0], [NOTHING, TWO])
    assert row.text == "lobsters"
    assert (row.avg_logprob, row.no_speech_prob) == (-0.7, 0.6)
    assert row.flags == ("temperature_fallback",)


def test_a_row_without_any_words_says_so() -> None:
    row = join_transcripts([0.0, 10.0], [NOTHING, NOTHING])
    assert (row.text, row.flags, row.segments) == ("", ("no_words",), ())
    assert (row.avg_logprob, row.compression_ratio) == (None, None)
    assert row.no_speech_prob == pytest.approx(0.8)


def test_a_row_without_a_voice_is_surely_no_speech() -> None:
    row = no_voice("de", 0.1)
    assert (row.text, row.language, row.flags) == ("", "de", ("no_voice",))
    assert row.no_speech_prob == 0.9


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["one", "two"], "one two"),
        ([" one ", "", "two"], "one two"),
        (["今日は良い", "天気です。", "散歩"], "今日は良い天気です。散歩"),
        (["今日は", "good"], "今日は good"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕하세요", "여러분"], "안녕하세요 여러분"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_their_script_is_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


@given(st.lists(st.text("ab 今日。ก", max_size=5), max_size=6))
def test_no_character_but_spaces_is_lost_or_added(texts: list[str]) -> None:
    assert join_texts(texts).replace(" ", "") == "".join(texts).replace(" ", "")


def test_figures_that_grow_with_the_text_are_those_of_the_worst_piece() -> None:
    looped = replace(ONE, text="no way out " * 4, compression_ratio=3.0)
    row = join_transcripts([0.0, 30.0, 60.0], [ONE, looped, TWO])
    assert row.repetition == repetition(looped.text) > repetition(row.text)
    assert row.compression_ratio == 3.0
