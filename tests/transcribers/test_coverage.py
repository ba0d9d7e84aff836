"""A text that leaves out voice is found out, and what it left out is heard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.audio import resample
from speechmill.records import Speech, Transcript, Waveform
from speechmill.speech.segmentation import SegmentOptions, segment
from speechmill.speech.voice import VoiceOptions, listen
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers.adaptive import WindowOutcome
from speechmill.transcribers.coverage import (
    Span,
    cuts_around,
    longest_pause,
    longest_untold,
    pauses,
    split_at,
)
from speechmill.transcribers.languages import SpokenLanguage
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.transcribers.windows import WindowOptions
from tests.support.weights import SAMPLE_RATE, speech, whisper
from tests.support.whispers import opened


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
    most_s, span = longest_untold([0.1, 3.1, 5.2], voiced, 8.5)
    assert (round(most_s, 6), span) == (2.8, (5.2, 8.5))
    assert longest_untold([1.9, 3.1, 5.2, 6.0, 7.0], voiced, 8.5) == (1.9, (0.0, 1.9))


def test_what_is_left_out_is_parted_from_what_is_told_around_it() -> None:
    voiced = ((0.0, 1.0), (2.0, 3.0), (3.1, 4.0), (4.5, 5.0), (6.0, 7.0))
    there = pauses(voiced, 0.2)
    assert there == [(1.0, 2.0), (4.0, 4.5), (5.0, 6.0)]
    assert cuts_around((0.9, 8.0), voiced, there) == [1.5]  # nothing is told after it
    assert cuts_around((0.0, 6.1), voiced, there) == [5.5]  # nor before it
    assert cuts_around((0.9, 6.1), voiced, there) == [1.5, 5.5]
    assert cuts_around((0.9, 4.1), voiced, there) == [1.5, 4.25]
    assert cuts_around((0.9, 3.5), voiced, there) == [1.5]
    assert cuts_around((2.1, 3.9), voiced, there) == []
    assert cuts_around((0.0, 8.0), voiced, there) == []


@given(voiced=voices(), cuts=st.lists(st.integers(1, 2999), max_size=3, unique=True))
def test_the_parts_are_all_of_it(voiced: tuple[Span, ...], cuts: list[int]) -> None:
    samples = np.arange(3000, dtype=np.float32)
    parts = split_at(Speech(samples, voiced, "de", 0.9), [cut / 100 for cut in sorted(cuts)], 100)
    assert np.array_equal(np.concatenate([part.samples for _, part in parts]), samples)
    assert [start_s for start_s, _ in parts] == [0.0, *(cut / 100 for cut in sorted(cuts))]
    told_s = sum(part.voiced_s or 0.0 for _, part in parts)
    assert told_s == pytest.approx(sum(b - a for a, b in voiced))
    for _, part in parts:
        assert (part.language, part.language_probability) == ("de", 0.9)
        edges = [edge for span in part.voiced or () for edge in span]
        assert edges == sorted(edges)
        assert all(-1e-9 <= edge <= len(part.samples) / 100 + 1e-9 for edge in edges)


def heard_together(transcriber: WhisperTranscriber, *paths: str) -> Transcript:
    """What is heard of recordings with half a second between them."""
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    pieces = [one for path in paths for one in (speech(path), pause)]
    return heard_whole(transcriber, np.concatenate(pieces))


def heard_whole(transcriber: WhisperTranscriber, samples: NDArray[np.float32]) -> Transcript:
    """What is heard of a recording that is kept whole, at most half a minute."""
    voice = listen(lambda a, b: samples[a:b], len(samples), VoiceOptions())
    (row,) = segment(voice, "none", SegmentOptions(), VoiceOptions()).rows
    (piece,) = row.pieces
    (transcript,) = transcriber.transcribe([Speech(samples, piece.voiced)])
    return transcript


@pytest.mark.parametrize("words", [False, True])
def test_a_sentence_that_the_decoder_leaves_out_is_heard(
    words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whisper("tiny.en")
    options = TranscriberOptions(device="cpu", cpu_threads=2, words=words)
    transcriber = WhisperTranscriber("tiny.en", options)
    both = "speech/p225/p225_016.wav", "speech/367/367-130732-0000.flac"
    transcript = heard_together(transcriber, *both)
    assert transcript.text.endswith("home in the sky. Lobsters and lobsters.")
    assert transcript.flags == ("heard_in_parts",)
    first, second = transcript.segments
    assert second.text == "Lobsters and lobsters."
    assert first.end_s <= second.start_s
    if words:
        assert transcript.words is not None
        assert [w.word for w in transcript.words[-3:]] == ["Lobsters", "and", "lobsters."]
        times = [t for w in transcript.words for t in (w.start_s, w.end_s)]
        assert times == sorted(times)
    monkeypatch.setattr(transcriber.encoder, "windows", WindowOptions(max_untold_s=30.0))
    assert heard_together(transcriber, *both).text.endswith("home in the sky.")


def test_next_to_nothing_of_much_speech_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One word of two sentences is heard in parts, as their pause allows; where there is none, in
    a wider window."""
    whisper("tiny.en")
    transcriber = WhisperTranscriber("tiny.en", TranscriberOptions(device="cpu", cpu_threads=2))
    model = transcriber._ctranslate2
    (well,) = transcriber._adaptive._tokens.tokenizer("en").encode(" Well")
    generate, calls = model.generate, []

    def at_first_nothing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            return generate(*args, **kwargs)
        return [SimpleNamespace(sequences_ids=[[well]], scores=[-0.1], no_speech_prob=0.01)]

    monkeypatch.setattr(model, "generate", at_first_nothing)
    both = "speech/p225/p225_016.wav", "speech/367/367-130732-0000.flac"
    transcript = heard_together(transcriber, *both)
    assert transcript.text.endswith("home in the sky. Lobsters and lobsters.")
    assert transcript.flags == ("heard_in_parts",)
    calls.clear()
    samples = speech(both[0])
    (alone,) = transcriber.transcribe([Speech(samples, ((0.1, 5.5),))])
    assert alone.text.endswith("home in the sky.")
    assert alone.flags == ()
    options = WindowOptions()
    assert alone.window_s == options.window_s(len(samples), SAMPLE_RATE) + options.wider_s


WHOLE = ((0.2, 5.0), (6.0, 11.0))
"""Two sentences with a second between them."""


class Stubbed:
    """Adaptive windows whose outcomes are made up: ``says`` gives the text of a stretch of so many
    seconds in a window of so many, "" for a suspicious one, and whether it leaves the rest out."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        says: Callable[[float, float], tuple[str, bool]],
        in_full: str = "",
    ) -> None:
        whisper("tiny.en")
        self.asked: list[tuple[float, float]] = []
        transcriber = WhisperTranscriber("tiny.en", TranscriberOptions(device="cpu"))
        self._adaptive = transcriber._adaptive

        def heard(
            batch: Sequence[Speech], windows_s: Sequence[float], _: Any = None, **__: bool
        ) -> Any:
            return [outcome(one, window_s) for one, window_s in zip(batch, windows_s, strict=True)]

        def outcome(one: Speech, window_s: float) -> WindowOutcome:
            duration_s = len(one.samples) / SAMPLE_RATE
            self.asked.append((duration_s, window_s))
            text, leaves_out = says(duration_s, window_s)
            untold = (5.0, duration_s) if leaves_out else None
            return WindowOutcome(
                SpokenLanguage("en", None), Transcript(text) if text else None, untold
            )

        monkeypatch.setattr(self._adaptive, "_decode_windows", heard)
        monkeypatch.setattr(self._adaptive, "_decode_full_window", lambda _: Transcript(in_full))

    def text(self, voiced: tuple[Span, ...] = WHOLE) -> str:
        samples = np.zeros(round(11.5 * SAMPLE_RATE), np.float32)
        (transcript,) = self._adaptive.transcribe([Speech(samples, voiced)])
        return transcript.text


SENTENCE = "And one more sentence."


def test_a_suspicious_window_and_a_wider_one_that_leaves_out_are_heard_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def says(duration_s: float, window_s: float) -> tuple[str, bool]:
        if duration_s < 11:
            return (SENTENCE if duration_s > 5.8 else "This is the first.", False)
        return ("", False) if window_s < 15 else ("Well.", True)

    stubbed = Stubbed(monkeypatch, says, in_full="Well.")
    assert stubbed.text() == f"This is the first. {SENTENCE}"
    assert [duration_s for duration_s, _ in stubbed.asked] == [11.5, 11.5, 5.5, 6.0]


def test_a_text_is_not_given_up_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    for leaves_out in (False, True):
        stubbed = Stubbed(monkeypatch, lambda *_, out=leaves_out: ("He said.", out), in_full="")
        assert stubbed.text() == "He said. He said."
        assert stubbed.text(((0.2, 11.0),)) == "He said."  # no pause to cut it at
    silent = Stubbed(monkeypatch, lambda *_: ("", False), in_full="He said so in full.")
    assert silent.text(((0.2, 11.0),)) == "He said so in full."


@pytest.mark.parametrize("loop", ["ha " * 80, "and more of it, " * 9, "word" * 200])
def test_parts_that_loop_are_not_taken_for_more(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(duration_s: float, _: float) -> tuple[str, bool]:
        if duration_s > 11:
            return "Good morning everyone, and welcome.", True
        return (SENTENCE, False) if duration_s < 5.8 else (loop, False)

    assert Stubbed(monkeypatch, says).text() == "Good morning everyone, and welcome."


@given(voiced=voices(), voice_s=st.floats(0.01, 5))
def test_the_longest_pause_leaves_enough_voice_on_either_side(
    voiced: tuple[Span, ...], voice_s: float
) -> None:
    cuts = longest_pause(voiced, 0.2, voice_s)
    fit = [
        (b - a, (a + b) / 2)
        for a, b in pauses(voiced, 0.2)
        if sum(end - start for start, end in voiced if end <= a) >= voice_s
        and sum(end - start for start, end in voiced if start >= b) >= voice_s
    ]
    assert len(cuts) == bool(fit)
    if cuts:
        assert max(fit)[0] == pytest.approx(max(length for length, at in fit if at == cuts[0]))


def again(samples: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """The same words by what sounds like another voice: at another speed and pitch."""
    return resample(Waveform(samples, round(SAMPLE_RATE * speed)), SAMPLE_RATE).samples


REPEATED = {
    "A": "speech/1688/1688-142285-0003.flac",
    "B": "speech/2033/2033-164914-0004.flac",
    "C": "speech/367/367-130732-0009.flac",
}


@pytest.mark.parametrize(
    ("order", "pause_s"),
    [("CBCB", 0.3), ("ABAB", 1.0), ("AA", 0.3), ("BB", 1.0), ("ACA", 0.6), ("CCC", 0.3)],
)
def test_what_is_said_again_is_written_again(order: str, pause_s: float) -> None:
    """Two voices in turn; the second rendition is at another tempo and pitch."""
    rng = np.random.default_rng(0)
    pause = (1e-3 * rng.standard_normal(round(pause_s * SAMPLE_RATE))).astype(np.float32)
    pieces = []
    for position, letter in enumerate(order):
        samples = speech(REPEATED[letter])
        pieces += [again(samples, 1.1) if letter in order[:position] else samples, pause]
    transcript = heard_whole(opened("base"), np.concatenate(pieces))
    alone = {letter: heard_whole(opened("base"), speech(REPEATED[letter])) for letter in order}
    expected = sum(len(alone[letter].text) for letter in order)
    assert expected * 0.85 < len(transcript.text) < expected * 1.15
    assert "maybe_incomplete" not in transcript.flags


def test_silence_is_asked_about_texts_of_any_length() -> None:
    """The full window may say more than the decoder has places for."""
    whisper("tiny.en")
    transcriber = WhisperTranscriber("tiny.en", TranscriberOptions(device="cpu"))
    encoded = transcriber.encoder.encode_with_silence(
        [Speech(speech("speech/p225/p225_016.wav"))], [7.0]
    )
    told = " The Norsemen considered the rainbow as a bridge."
    encode = transcriber._adaptive._tokens.tokenizer("en").encode
    gains = [
        transcriber._adaptive._attention.gain(encode(told + more), "en", encoded, 5.6)
        for more in ("", " and so on" * 300)
    ]
    assert gains[0] > 1
    assert np.isfinite(gains[1])
