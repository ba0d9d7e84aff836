"""A text that leaves out voice is found out, and what it left out is heard."""

from __future__ import annotations

import re
from functools import cache

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers.coverage import Span, divided, longest_pause, longest_untold
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.voice import Voice, VoiceOptions, listen
from tests.weights import SAMPLE_RATE, speech, whisper


@st.composite
def voices(draw: st.DrawFn) -> tuple[Span, ...]:
    """Stretches of voice, in order and apart, in seconds."""
    edges = draw(st.lists(st.integers(0, 3000), min_size=2, max_size=12, unique=True))
    steps = [edge / 100 for edge in sorted(edges)]
    return tuple(zip(steps[::2], steps[1::2], strict=False))


@given(voiced=voices(), starts=st.lists(st.integers(0, 1500), max_size=20))
def test_the_most_that_is_left_out_is_no_less_than_any_other(
    voiced: tuple[Span, ...], starts: list[int]
) -> None:
    starts_s = [frame / 50 for frame in sorted(starts)]
    most_s, (start_s, end_s) = longest_untold(starts_s, voiced, 30.0)
    total_s = sum(b - a for a, b in voiced)
    assert total_s / (len(starts_s) + 1) - 1e-6 <= most_s <= total_s + 1e-6
    inside = sum(max(0.0, min(b, end_s) - max(a, start_s)) for a, b in voiced)
    assert most_s == pytest.approx(inside)
    assert not any(start_s < s < end_s for s in starts_s)


def test_voice_before_the_first_token_and_after_the_last_counts() -> None:
    voiced = ((0.0, 2.0), (3.0, 4.0), (5.0, 8.0))
    assert longest_untold([0.1, 3.1, 5.2], voiced, 8.5) == (pytest.approx(2.8), (5.2, 8.5))
    assert longest_untold([1.9, 3.1, 5.2, 6.0, 7.0], voiced, 8.5) == (1.9, (0.0, 1.9))


def test_the_longest_pause_is_of_those_that_are_asked_for() -> None:
    voiced = ((0.0, 1.0), (2.0, 3.0), (3.2, 4.0), (4.5, 5.0))
    assert longest_pause(voiced) == (1.0, 2.0)
    assert longest_pause(voiced, (2.5, 4.2)) == (4.0, 4.5)
    assert longest_pause(voiced, (2.1, 2.9)) is None
    assert longest_pause(voiced[:1]) is None


@given(voiced=voices(), at=st.integers(0, 3000))
def test_two_parts_are_all_of_it(voiced: tuple[Span, ...], at: int) -> None:
    samples = np.arange(3000, dtype=np.float32)
    before, after = divided(Speech(samples, voiced, "de", 0.9), at / 100, 100)
    assert np.array_equal(np.concatenate([before.samples, after.samples]), samples)
    assert before.voiced_s is not None
    assert after.voiced_s is not None
    assert before.voiced_s + after.voiced_s == pytest.approx(sum(b - a for a, b in voiced))
    for part in (before, after):
        assert (part.language, part.language_probability) == ("de", 0.9)
        edges = [edge for span in part.voiced or () for edge in span]
        assert edges == sorted(edges)
        assert all(0 <= edge <= len(part.samples) / 100 + 1e-9 for edge in edges)
