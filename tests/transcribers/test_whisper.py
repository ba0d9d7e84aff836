"""Whisper: as faster-whisper hears it, in windows as long as the speech needs, in any company."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill import Job, build, open_dataset
from speechmill.errors import JobError, ModelError
from speechmill.records import Speech, Transcript
from speechmill.transcribers import (
    TranscriberOptions,
    ctranslate,
    resolve_compute_type,
)
from speechmill.transcribers import results as results_module
from speechmill.transcribers.attention import Attention
from speechmill.transcribers.hearing import MelFilters
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.transcribers.windows import FULL_WINDOW_S, Heard, WindowOptions
from tests.support.weights import SAMPLE_RATE, speech, whisper

LOBSTERS = "speech/367/367-130732-0000.flac"  # "Lobsters and lobsters", 2.4 s
CHURCHYARDS = "speech/533/533-1066-0000.flac"  # "When churchyards yawn", 2.6 s
JFK = "oddities/jfk/jfk.flac"
CLIPS = (
    LOBSTERS,
    CHURCHYARDS,
    JFK,
    "speech/p225/p225_001_mic1.flac",
    "speech/p226/p226_022.wav",
    "speech/1998/1998-15444-0009.flac",
    "speech/2033/2033-164914-0002.flac",
    "speech/fleurs_en/fleurs-en-003.ogg",
)


@cache
def opened(model: str, **options: Any) -> WhisperTranscriber:
    whisper(model)
    return WhisperTranscriber(
        model, TranscriberOptions(**{"device": "cpu", "cpu_threads": 2, **options})
    )


@pytest.fixture
def tiny() -> WhisperTranscriber:
    """Whisper tiny.en."""
    return opened("tiny.en")


def one(transcriber: WhisperTranscriber, samples: NDArray[np.float32]) -> Transcript:
    (transcript,) = transcriber.transcribe([Speech(samples)])
    return transcript


def zeros(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def test_the_full_window_says_what_faster_whisper_says() -> None:
    from faster_whisper import WhisperModel

    peer = WhisperModel(
        str(whisper("tiny.en").folder), device="cpu", compute_type="int8", cpu_threads=2
    )
    # Sums in another order: on some processors that decides between "And so" and "And so,".
    peer.feature_extractor.mel_filters = MelFilters(peer.feature_extractor.mel_filters)
    full = opened("tiny.en", window="full", words=True)
    for path in CLIPS[:5]:
        found, _ = peer.transcribe(speech(path), beam_size=5, word_timestamps=True)
        segments = list(found)
        transcript = one(full, speech(path))
        assert transcript.text == "".join(segment.text for segment in segments).strip()
        assert [s.end_s for s in transcript.segments] == pytest.approx(
            [min(s.end, len(speech(path)) / SAMPLE_RATE) for s in segments]
        )
        assert transcript.words is not None
        assert [w.word for w in transcript.words] == [
            w.word.strip() for s in segments for w in s.words or ()
        ]
        assert transcript.window_s == FULL_WINDOW_S


def test_adaptive_windows_say_much_the_same() -> None:
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    normal = EnglishTextNormalizer()
    samples = [Speech(speech(path)) for path in CLIPS]
    adaptive = opened("base", language="en").transcribe(samples)
    full = opened("base", language="en", window="full").transcribe(samples)
    assert all((t.window_s or 0) < FULL_WINDOW_S for t in adaptive[2:])
    rate = jiwer.wer([normal(t.text) for t in full], [normal(t.text) for t in adaptive])
    assert rate < 0.12


@settings(max_examples=15, deadline=None)
@given(
    chosen=st.lists(st.integers(0, len(CLIPS) - 1), min_size=1, max_size=12), size=st.integers(1, 9)
)
def test_text_and_figures_do_not_depend_on_the_company(chosen: list[int], size: int) -> None:
    alone = _alone()
    transcriber = opened("tiny.en", words=True, batch_size=size)
    # Cut to two lengths: two windows, of which the decoder is given equally much, in one batch.
    got = transcriber.transcribe([Speech(_cut(i)) for i in chosen])
    assert got == [alone[i] for i in chosen]


def _cut(i: int) -> NDArray[np.float32]:
    return speech(CLIPS[i])[: (2 + i % 2) * SAMPLE_RATE]


@cache
def _alone() -> list[Transcript]:
    transcriber = opened("tiny.en", words=True)
    return [one(transcriber, _cut(i)) for i in range(len(CLIPS))]


def test_many_threads_get_the_same(tiny: WhisperTranscriber) -> None:
    expected = tiny.transcribe([Speech(speech(path)) for path in CLIPS])
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda path: one(tiny, speech(path)), CLIPS)) == expected


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = ctranslate.encode

    def small(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
        sizes.append(len(features))
        if len(features) > 2:
            raise RuntimeError("CUDA failed with error out of memory")
        return encode(model, features)

    samples = [Speech(speech(path)[: 2 * SAMPLE_RATE]) for path in CLIPS]
    expected = tiny.transcribe(samples)
    monkeypatch.setattr(ctranslate, "encode", small)
    assert tiny.transcribe(samples) == expected
    assert max(sizes) == 4  # eight, shared out between two workers
    assert sizes.count(2) >= 4


def test_what_does_not_fit_alone_is_a_model_error(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ctranslate, "encode", never)
    with pytest.raises(ModelError, match=r"'tiny\.en' cannot run on cpu with int8: std::bad_alloc"):
        one(tiny, speech(LOBSTERS))


def test_what_loops_is_heard_again_in_the_full_window(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one(opened("tiny.en", window="full"), speech(JFK))
    # As if the decoder were given no silence: then it says things twice.
    monkeypatch.setattr(tiny._adaptive, "_windows", WindowOptions(max_compression_ratio=0.1))
    transcript = one(tiny, speech(JFK))
    assert (transcript.text, transcript.segments) == (expected.text, expected.segments)
    assert transcript.flags == ("window_fallback",)
    assert transcript.window_s == FULL_WINDOW_S


def test_what_loops_in_one_window_is_heard_again_in_a_wider_one(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubted: list[int] = []

    def once(options: WindowOptions, heard: Heard) -> bool:
        doubted.append(heard.max_tokens)
        return len(doubted) == 1

    monkeypatch.setattr(WindowOptions, "is_suspicious", once)
    transcript = one(tiny, speech(LOBSTERS))
    assert doubted == [WindowOptions().max_tokens(decoder_s) for decoder_s in (10.0, 14.0)]
    assert transcript.window_s == 7.5
    assert transcript.flags == ()
    assert transcript.text.lower().startswith("lobster")


SENTENCE = "The norsemen considered the rainbow as a bridge."


@pytest.mark.parametrize(
    ("heard", "suspicious"),
    [
        (Heard(SENTENCE, -0.3, 12, 4.0, 3.0), False),
        (Heard(SENTENCE, -0.3, 12, 4.0, None), False),
        (Heard(f"{SENTENCE} {SENTENCE}", -0.3, 24, 6.0, 6.0), True),
        (Heard("no " * 40, -0.1, 40, 5.0, 5.0), True),
        (Heard(SENTENCE, -1.2, 12, 4.0, 3.0), True),
        (Heard(SENTENCE, -0.3, 12, 4.0, 0.5), True),
        (Heard("Yes.", -0.3, 2, 1.0, 0.4), False),
        (Heard(SENTENCE, -0.3, 150, 4.0, 3.0, 0.0, 150), True),
        (Heard(SENTENCE, -0.3, 149, 4.0, 3.0, 0.0, 150), False),
        (Heard("Yes.", -1.3, 2, 1.0, 0.4, 0.9), False),
        (Heard("", -0.3, 1, 4.0, 3.0), True),
        (Heard("", -0.3, 1, 1.0, 0.4), False),
        (Heard("Yes.", -1.3, 2, 1.0, 0.4), False),
        (Heard("yes yes yes yes yes yes", -1.3, 6, 1.0, 0.4), True),
        (Heard("July. July.", -0.3, 4, 1.0, 0.8), True),
    ],
)
def test_suspicious_is_what_repeats_or_is_too_long(heard: Heard, suspicious: bool) -> None:
    assert WindowOptions().is_suspicious(heard) == suspicious


@pytest.mark.parametrize(
    ("text", "voiced_s", "is_too_little"),
    [("Well", 9.0, True), ("Well", 1.9, False), (SENTENCE, 20.0, False), (SENTENCE, 25.0, True)],
)
def test_next_to_nothing_is_too_little(text: str, voiced_s: float, is_too_little: bool) -> None:
    assert WindowOptions().says_too_little(text, voiced_s) == is_too_little


def chime(seed: int) -> NDArray[np.float32]:
    """Bells, float32 [num_samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    at_s = np.arange(int(rng.uniform(2, 6) * SAMPLE_RATE)) / SAMPLE_RATE
    samples = np.zeros_like(at_s)
    for _ in range(rng.integers(1, 6)):
        since_s = at_s - rng.uniform(0, 0.7) * at_s[-1]
        pitch_hz = 262 * 2 ** (rng.integers(0, 20) / 12)
        for harmonic, level in ((1, 1), (2, 0.5), (2.76, 0.35), (4.2, 0.2), (5.4, 0.1)):
            ring = np.exp(-3 * since_s.clip(0) * harmonic**0.5) * (since_s >= 0)
            samples += level * ring * np.sin(2 * np.pi * pitch_hz * harmonic * since_s)
    return np.asarray(0.5 * samples / np.abs(samples).max(), np.float32)


def test_bells_that_are_like_a_voice_say_nothing(tmp_path: Path) -> None:
    seeds = (19, 29, 43, 99)  # bare Whisper makes "You" of the first three, and dots of the last
    whisper("base")
    for seed in seeds:
        path = tmp_path / "bells" / f"{seed}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, chime(seed), SAMPLE_RATE)
    sink = str(tmp_path / "sink")
    build(Job(source=str(tmp_path / "bells"), sink=sink, model="base", language="en"))
    rows = open_dataset(sink).to_table().to_pylist()
    assert [row["transcription"] for row in rows] == [""] * len(seeds)
    assert all("no_words" in row["flags"] for row in rows)  # a voice was heard


@pytest.mark.parametrize(
    ("gain", "voiced_s", "avg_logprob", "no_speech_prob", "made_up"),
    [
        (0.4, 3.9, -0.1, 0.1, True),  # silence says it as well
        (0.6, 3.9, -0.1, 0.1, False),  # noise as loud as the voice
        (0.6, None, -0.1, 0.1, False),
        (0.9, 2.9, -0.1, 0.1, True),  # music
        (1.1, 2.9, -0.1, 0.1, False),
        (2.9, 1.4, -1.0, 0.3, True),  # a chime or two
        (3.1, 1.4, -1.0, 0.3, False),  # "Golf."
        (2.9, 1.6, -1.0, 0.3, False),
        (2.9, 1.4, -0.8, 0.3, False),  # "Vendredi."
        (2.9, 1.4, -1.0, 0.2, False),
        (2.1, 2.1, -1.0, 0.3, False),
    ],
)
def test_words_are_made_up_that_silence_would_give_as_well(
    gain: float,
    voiced_s: float | None,
    avg_logprob: float,
    no_speech_prob: float,
    made_up: bool,
) -> None:
    heard = Heard("you", avg_logprob, 1, 4.0, voiced_s, no_speech_prob)
    assert WindowOptions().is_made_up(heard, gain) == made_up
    if voiced_s is not None and voiced_s < 1.5:  # brief; a token of Georgian gains less
        assert not WindowOptions().is_made_up(heard, gain, "ka")


@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_speech_makes_words_likelier_than_silence_does_and_bells_do_not(model: str) -> None:
    transcriber = opened(model)
    encoded = transcriber.hearing.encoded

    def gain(samples: NDArray[np.float32], text: str) -> float:
        duration_s = len(samples) / SAMPLE_RATE
        window_s = WindowOptions().window_s(len(samples), SAMPLE_RATE)
        heard = encoded([Speech(samples)], [window_s])
        tokens = transcriber._adaptive._wording.tokenizer("en").encode(f" {text}")
        return transcriber._adaptive._attention.gain(tokens, "en", heard, duration_s)

    assert gain(speech(LOBSTERS), "Lobsters and lobsters.") > 2
    assert gain(speech(CHURCHYARDS), "When churchyards yawn.") > 2
    assert gain(speech(LOBSTERS), "Thank you.") < gain(speech(LOBSTERS), "Lobsters and lobsters.")
    bells = [chime(seed) for seed in (19, 29, 43)]
    for samples in (*bells, zeros(3.0)):
        for text in ("you", "You", "Thank you."):
            assert gain(samples, text) < WindowOptions().min_gain, text


@pytest.mark.parametrize(
    ("gain", "voiced_s", "made_up"),
    [(2.9, 0.4, True), (2.1, 0.6, False), (1.9, 0.6, True), (1.9, 1.0, True)],
)
def test_a_brief_stretch_that_is_voice_needs_less_gain(
    gain: float, voiced_s: float, made_up: bool
) -> None:
    heard = Heard("Para", -1.0, 1, 1.0, voiced_s, 0.4)
    assert WindowOptions().is_made_up(heard, gain) == made_up


def test_words_of_a_crumb_are_made_up_where_whisper_says_so_twice() -> None:
    def is_no_speech(*, avg_logprob: float, no_speech_prob: float, duration_s: float) -> bool:
        heard = Heard("you", avg_logprob, 1, duration_s, duration_s, no_speech_prob)
        return WindowOptions().is_no_speech(heard)

    assert is_no_speech(avg_logprob=-1.2, no_speech_prob=0.8, duration_s=1.0)
    assert not is_no_speech(avg_logprob=-0.8, no_speech_prob=0.8, duration_s=1.0)
    assert not is_no_speech(avg_logprob=-1.2, no_speech_prob=0.5, duration_s=1.0)
    assert not is_no_speech(avg_logprob=-1.2, no_speech_prob=0.8, duration_s=2.0)


@pytest.mark.parametrize(
    ("voiced_s", "no_speech_prob", "none"),
    [(0.15, 0.7, True), (0.15, 0.5, False), (0.26, 0.7, False), (None, 0.7, False)],
)
def test_less_voice_than_a_word_needs_to_be_speech(
    voiced_s: float | None, no_speech_prob: float, none: bool
) -> None:
    heard = Heard("you", -0.4, 1, 4.0, voiced_s, no_speech_prob)
    assert WindowOptions().is_no_speech(heard) == none


def test_only_doubtful_words_are_compared_with_silence() -> None:
    windows = WindowOptions()
    assert windows.is_doubtful(Heard("you", -0.8, 1, 4.0, 0.6, 0.4))
    assert windows.is_doubtful(Heard("you", -0.8, 1, 4.0, 3.9, 0.4))
    assert windows.is_doubtful(Heard("you", -0.8, 1, 4.0, 0.6, 0.1))
    assert windows.is_doubtful(Heard("you", -1.0, 1, 4.0, 3.9, 0.1))
    assert windows.is_doubtful(Heard("you", -0.8, 1, 4.0, None, 0.4))
    assert not windows.is_doubtful(Heard("you", -0.8, 1, 4.0, 3.9, 0.1))
    assert not windows.is_doubtful(Heard("you", -0.8, 1, 4.0, None, 0.1))


@pytest.mark.parametrize(
    ("text", "avg_logprob", "gain", "flags"),
    [
        ("Lobsters.", -1.1, 0.3, {"no_words"}),
        ("Lobsters.", -1.1, 1.5, {"low_confidence", "maybe_made_up"}),
        ("Lobsters.", -1.1, 4.0, {"low_confidence"}),
        ("Lobsters.", -0.2, None, {"low_confidence"}),
        ("…", -1.1, None, {"no_words"}),
        ("$", -1.1, 4.0, {"low_confidence"}),
    ],
)
def test_what_hardly_gains_is_flagged_and_what_does_not_is_none(
    tiny: WhisperTranscriber,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    avg_logprob: float,
    gain: float | None,
    flags: set[str],
) -> None:
    asked: list[float | None] = []

    def gain_of(*_: object) -> float | None:
        asked.append(gain)
        return gain

    monkeypatch.setattr(Attention, "gain", gain_of)
    duration_s = len(speech(LOBSTERS)) / SAMPLE_RATE
    heard = Heard(text, avg_logprob, 1, duration_s, None, 0.1)
    told = Transcript(text, language="en", window_s=5.0, flags=("low_confidence",))
    transcript = tiny._adaptive._weighed(told, heard, [50], np.zeros((1, 500, 384), np.float32))
    assert set(transcript.flags) == flags
    assert transcript.text == ("" if "no_words" in flags else text)
    assert transcript.window_s == 5.0
    assert asked == ([] if gain is None else [gain])


def test_what_the_full_window_says_is_compared_with_silence(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WindowOptions, "is_suspicious", lambda *_: True)
    monkeypatch.setattr(WindowOptions, "is_doubtful", lambda *_: True)
    monkeypatch.setattr(Attention, "gain", lambda *_: 1.5)
    assert one(tiny, speech(JFK)).flags == ("maybe_made_up", "window_fallback")
    monkeypatch.setattr(Attention, "gain", lambda *_: 0.3)
    transcript = one(tiny, speech(JFK))
    assert (transcript.text, transcript.flags) == ("", ("no_words", "window_fallback"))


def test_silence_is_asked_about_the_tokens_that_the_decoder_gave(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scripts without spaces they are others behind a space."""
    asked: list[list[int]] = []

    def gain(_: Attention, tokens: list[int], *__: object) -> float:
        asked.append(list(tokens))
        return 4.0

    given: list[list[int]] = []
    generated = tiny._adaptive._generated

    def generate(*arguments: Any) -> Any:
        found = generated(*arguments)
        given.extend(result.sequences_ids[0] for result in found)
        return found

    monkeypatch.setattr(WindowOptions, "is_doubtful", lambda *_: True)
    monkeypatch.setattr(Attention, "gain", gain)
    monkeypatch.setattr(tiny._adaptive, "_generated", generate)
    one(tiny, speech(LOBSTERS))
    assert asked == given
    told = Transcript("今日", language="en", window_s=30.0)
    monkeypatch.setattr(tiny._adaptive._full, "transcribe", lambda _: told)
    tiny._adaptive._in_full(Speech(speech(LOBSTERS)))
    assert asked[1] == tiny._adaptive._wording.tokenizer("en").encode("今日")


def test_a_prompt_that_is_written_down_where_nobody_speaks_is_made_up() -> None:
    seeds = (19, 29, 43)
    prompted = opened("base", initial_prompt="Glossary: Speechmill, Zau al-Makan.")
    told = prompted.transcribe([Speech(chime(seed), ((0.1, 0.6),), "en", 1.0) for seed in seeds])
    assert [t.text for t in told] == [""] * len(seeds)


@given(num_samples=st.integers(0, 30 * SAMPLE_RATE))
def test_a_window_holds_the_speech_and_silence_after_it(num_samples: int) -> None:
    options = WindowOptions()
    window_s = options.window_s(num_samples, SAMPLE_RATE)
    assert window_s % options.grid_s == 0
    assert options.min_s <= window_s <= FULL_WINDOW_S
    assert window_s >= min(num_samples / SAMPLE_RATE + options.pad_s, FULL_WINDOW_S) - 1e-6
    decoder_s = options.decoder_s(window_s)
    assert decoder_s == FULL_WINDOW_S or decoder_s % options.decoder_grid_s == 0
    assert decoder_s >= min(window_s + options.silence_s, FULL_WINDOW_S)
    assert options.max_tokens(decoder_s) > options.tokens_per_s * min(window_s, 24)


def test_a_text_that_does_not_end_is_not_believed(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one(opened("tiny.en", window="full"), speech(JFK))
    less = WindowOptions(tokens_per_s=1.0, tokens_more=1)  # than he says
    monkeypatch.setattr(tiny._adaptive, "_windows", less)
    transcript = one(tiny, speech(JFK))
    assert transcript.text == expected.text
    assert transcript.flags == ("window_fallback",)


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_words_have_times_in_order_and_within_the_recording(window: str) -> None:
    transcriber = opened("tiny.en", words=True, window=window)
    for path in CLIPS:
        transcript = one(transcriber, speech(path))
        assert transcript.words is not None
        assert "".join(w.word for w in transcript.words) == transcript.text.replace(" ", "")
        times = [t for w in transcript.words for t in (w.start_s, w.end_s)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= len(speech(path)) / SAMPLE_RATE
        assert all(0 <= w.probability <= 1 for w in transcript.words)


def test_words_lie_where_the_full_window_has_them() -> None:
    differences: list[float] = []
    more = "speech/p225/p225_002_mic1.flac", "speech/p226/p226_003.wav"
    samples = [Speech(speech(path)) for path in (*CLIPS, *more)]
    both = zip(
        opened("tiny.en", words=True).transcribe(samples),
        opened("tiny.en", words=True, window="full").transcribe(samples),
        strict=True,
    )
    for adaptive, full in both:
        if [w.word for w in adaptive.words or ()] == [w.word for w in full.words or ()]:
            for a, b in zip(adaptive.words or (), full.words or (), strict=True):
                differences += [abs(a.start_s - b.start_s), abs(a.end_s - b.end_s)]
    assert len(differences) > 40
    assert np.mean(differences) < 0.05


def test_more_than_a_window_is_refused(tiny: WhisperTranscriber) -> None:
    with pytest.raises(ModelError, match=r"at most 30 s at once, not 30\.5 s"):
        one(tiny, zeros(30.5))
    assert len(tiny.transcribe([Speech(np.tile(speech(JFK), 3)[: 30 * SAMPLE_RATE])])) == 1


def test_thousands_of_crumbs_and_one_long_stretch_come_back_in_order(
    tiny: WhisperTranscriber,
) -> None:
    crumbs = [Speech(speech(JFK)[k * 4_800 : (k + 1) * 4_800]) for k in range(30)]
    long = Speech(np.tile(speech(JFK), 3)[: int(29.9 * SAMPLE_RATE)])
    got = tiny.transcribe([*crumbs, long])
    assert len(got) == 31
    assert len(got[-1].text) > 200
    assert got[:3] == tiny.transcribe(crumbs[:3])


def test_a_rerun_gives_the_same_text_though_the_fallback_draws_lots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No text is sure enough and none is silence, so every temperature is tried.
    monkeypatch.setitem(results_module.DECODING, "log_prob_threshold", 0.0)
    monkeypatch.setitem(results_module.DECODING, "no_speech_threshold", 1.0)
    monkeypatch.setitem(results_module.DECODING, "best_of", 1)
    whisper("tiny.en")
    options = TranscriberOptions(device="cpu", cpu_threads=2, window="full", temperature=(1.0,))
    lots = WhisperTranscriber("tiny.en", options)
    clips = [Speech(speech(LOBSTERS)), Speech(speech(CHURCHYARDS))]
    once = lots.transcribe(clips)
    assert once == lots.transcribe(clips[::-1])[::-1]
    assert WhisperTranscriber("tiny.en", options).transcribe(clips[:1]) == once[:1]
    assert all("temperature_fallback" in transcript.flags for transcript in once)
    assert all(transcript.temperature == 1.0 for transcript in once)
    assert not ctranslate.SeededModel._seed_lock.locked()


def test_languages_are_detected_one_by_one_in_a_batch() -> None:
    paths = [f"speech/fleurs_{code}/fleurs-{code}-004.ogg" for code in ("de", "es", "fr", "pt")]
    clips = [Speech(speech(path)[: 7 * SAMPLE_RATE]) for path in paths]
    transcripts = opened("base").transcribe(clips)
    assert [t.language for t in transcripts] == ["de", "es", "fr", "pt"]
    assert all((t.language_probability or 0) > 0.8 for t in transcripts)
    assert "höhle" in one(opened("base"), speech(paths[0])).text.lower()


def test_the_language_of_a_recording_is_heard_in_several_stretches() -> None:
    german = [
        Speech(speech(f"speech/fleurs_de/fleurs-de-00{k}.ogg")[: 6 * SAMPLE_RATE]) for k in (1, 2)
    ]
    found = opened("base").detect_language(german)
    assert found is not None
    assert found[0] == "de"
    assert found[1] > 0.8
    assert opened("base", language="de").detect_language(german) is None
    assert opened("base").detect_language([]) is None
    assert opened("tiny.en").detect_language(german) is None


def test_a_recording_whose_language_is_uncertain_is_heard_in_the_full_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transcriber = opened("base")
    asked: list[float] = []
    surest = 0.0

    def probabilities(_: Speech, window_s: float) -> dict[str, float]:
        asked.append(window_s)
        return {"nn": surest, "de": 0.0} if window_s < FULL_WINDOW_S else {"nn": 0.0, "de": 0.9}

    monkeypatch.setattr(transcriber.hearing, "probabilities", probabilities)
    stretches = [Speech(zeros(2)), Speech(zeros(4))]
    surest = 0.5
    assert transcriber.detect_language(stretches) == ("de", 0.9)
    assert sorted(asked) == [3.0, 5.0, FULL_WINDOW_S, FULL_WINDOW_S]
    asked.clear()
    surest = 0.7
    assert transcriber.detect_language(stretches) == ("nn", 0.7)
    assert sorted(asked) == [3.0, 5.0]


def test_scripts_that_take_many_tokens_have_room_for_them_beside_others() -> None:
    """In Georgian a second of speech takes 30 tokens; and a batch of several languages gives each
    what it gives alone."""
    options = WindowOptions()
    assert options.max_tokens(12.0, "ka") > 448 > options.max_tokens(12.0, "de")
    transcriber = opened("base")
    batch = [
        Speech(speech(LOBSTERS), language=language, language_probability=1.0)
        for language in ("en", "hi", "de")
    ]
    together = transcriber.transcribe(batch)
    assert together == [transcriber.transcribe([one])[0] for one in batch]
    assert [t.language for t in together] == ["en", "hi", "de"]


@given(st.integers(1, 400))
def test_no_more_cores_are_idle_than_one_worker_would_take(cores: int) -> None:
    placement = ctranslate.place("cpu", "int8", cores)
    assert 1 <= placement.workers <= 16
    assert placement.threads >= 1
    assert 0 <= cores - placement.workers * placement.threads < placement.threads
    if cores <= 16:
        assert placement.threads == 1


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ["0", "1"]),
        ("", ["0", "1"]),
        ("3,5", ["3", "5"]),
        ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"]),
    ],
)
def test_the_memory_of_the_gpus_that_are_visible_is_asked_for(
    visible: str | None, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\necho "12000 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    placement = ctranslate.Placement("cuda", (0, 1), "float16", 1, 0)
    assert ctranslate.choose_batch_size(placement, 512, 5) == 64
    assert (tmp_path / "asked").read_text().split() == [f"--id={name}" for name in asked]


def test_only_languages_that_are_allowed_are_detected() -> None:
    german = speech("speech/fleurs_de/fleurs-de-004.ogg")
    transcript = one(opened("base", languages=("nl", "German")), german)
    assert transcript.language == "de"
    other = one(opened("base", languages=("nl", "en")), german)
    assert other.language in ("nl", "en")
    assert 0.5 <= (other.language_probability or 0) <= 1


def test_a_language_that_is_known_of_the_recording_is_taken() -> None:
    (transcript,) = opened("base").transcribe([Speech(speech(JFK), None, "de", 0.9)])
    assert (transcript.language, transcript.language_probability) == ("de", 0.9)


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_translation_is_english(window: str) -> None:
    german = speech("speech/fleurs_de/fleurs-de-004.ogg")
    transcript = one(opened("base", task="translate", window=window), german)
    assert transcript.language == "de"
    assert {"of", "the"} < set(re.findall(r"\w+", transcript.text.lower()))


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_numbers_are_spelt_out_on_demand(window: str) -> None:
    path = "speech/p225/p225_003.wav"  # "Six spoons of fresh snow peas, five thick slabs …"
    spelt = one(opened("tiny.en", suppress_numerals=True, window=window), speech(path)).text.lower()
    assert not any(c.isdigit() for c in spelt)
    assert "six" in spelt
    assert "five" in spelt


@pytest.mark.parametrize("window", ["adaptive", "full"])
@pytest.mark.parametrize("how", ["hotwords", "initial_prompt"])
def test_names_are_spelt_as_the_prompt_has_them(how: str, window: str) -> None:
    path = "speech/2033/2033-164914-0002.flac"  # "… ay Zau al Makan …" and the like
    plain = one(opened("base", language="en", window=window), speech(path)).text
    told = one(opened("base", language="en", window=window, **{how: "eunuch"}), speech(path)).text
    assert "eunuch" not in plain.lower()
    assert "eunuch" in told.lower()


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_prompts_and_hotwords_of_any_length_leave_room_for_the_text(window: str) -> None:
    told = "alpha bravo charlie delta echo foxtrot " * 60
    whisper = opened(
        "tiny.en", initial_prompt=told, hotwords=told, window=window, temperature=(0.0,)
    )
    assert len(whisper._adaptive._wording.prompt("en")) <= 223 + 3
    assert one(whisper, speech(CHURCHYARDS)).text


@pytest.mark.parametrize("how", ["hotwords", "initial_prompt"])
def test_prompts_that_would_steer_the_decoder_are_refused(how: str) -> None:
    with pytest.raises(JobError, match="must be plain text"):
        opened("tiny.en", **{how: "<|endoftext|>"})


def test_a_language_that_is_given_has_no_probability() -> None:
    english = opened("base", language="English")
    transcript = one(english, speech(CHURCHYARDS))
    assert (transcript.language, transcript.language_probability) == ("en", None)
    assert english.recipe["language"] == "en"


@pytest.mark.parametrize(
    ("language", "complaint"),
    [
        ("de", r"'tiny\.en' cannot transcribe german \('de'\).*English-only.*take 'tiny'"),
        ("xx", "there is no language 'xx'"),
        ("englisch", r"did you mean 'english'\?"),
        ("", "there is no language ''"),
    ],
)
def test_languages_that_the_model_does_not_speak_are_refused(language: str, complaint: str) -> None:
    whisper("tiny.en")
    with pytest.raises(JobError, match=complaint):
        WhisperTranscriber("tiny.en", TranscriberOptions(language=language, device="cpu"))


def test_options_that_contradict_each_other_are_refused() -> None:
    whisper("tiny.en")
    whisper("base")
    with pytest.raises(JobError, match=r"cannot translate.*take 'tiny'"):
        WhisperTranscriber("tiny.en", TranscriberOptions(task="translate", device="cpu"))
    with pytest.raises(JobError, match=r"'de' is not one of those allowed: en, fr"):
        WhisperTranscriber(
            "base", TranscriberOptions(language="de", languages=("fr", "en"), device="cpu")
        )


def test_languages_go_by_code_or_english_name() -> None:
    for code, name in LANGUAGES.items():
        for word in (code, name, name.upper(), f" {name.title()} "):
            assert language_code(word, LANGUAGES, "base") == code
    assert language_code("pt-BR", LANGUAGES, "base") == "pt"
    assert language_code("pt_PT", LANGUAGES, "base") == "pt"
    assert language_code("jv", LANGUAGES, "base") == "jw"
    assert language_code("haitian creole", LANGUAGES, "base") == "ht"


def test_our_languages_are_those_of_faster_whisper() -> None:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    assert set(LANGUAGES) == set(_LANGUAGE_CODES)


def test_auto_is_int8_on_a_processor() -> None:
    assert resolve_compute_type("cpu", "auto") == ("cpu", "int8")
    assert resolve_compute_type("cpu", "float32") == ("cpu", "float32")


@pytest.mark.parametrize(
    ("device", "compute_type", "complaint"),
    [
        ("cpu", "float61", r"did you mean 'float(16|32)'\? there are: auto, .*int8"),
        ("cpu", "double", "'double' is not supported on 'cpu' here; there are: auto, .*float32"),
        ("cuda:99", "auto", r"'cuda:99' is not here.*use the device 'cpu'"),
        ("tpu", "auto", "there is no device 'tpu'; there are: auto, cpu, cuda"),
        ("cpu:1", "auto", "there is no device 'cpu:1'"),
    ],
)
def test_devices_and_formats_that_are_not_here_are_refused(
    device: str, compute_type: str, complaint: str
) -> None:
    with pytest.raises(JobError, match=complaint):
        resolve_compute_type(device, compute_type)


def test_recipe_holds_what_shapes_the_text_and_nothing_else(
    tiny: WhisperTranscriber, tmp_path: Path
) -> None:
    copy = tmp_path / "copied"
    shutil.copytree(whisper("tiny.en").folder, copy)
    elsewhere = WhisperTranscriber(
        str(copy), TranscriberOptions(device="cpu", cpu_threads=1, batch_size=3)
    )
    assert elsewhere.recipe == tiny.recipe
    assert elsewhere.provenance != tiny.provenance
    text = json.dumps(tiny.recipe)
    assert whisper("tiny.en").digests["model.bin"] in text
    assert "cpu" not in text
    assert str(copy) not in text
    greedy = opened("tiny.en", beam_size=1, compute_type="float32", temperature=(0.0,))
    assert greedy.recipe["beam_size"] == 1
    assert greedy.recipe["compute_type"] == "float32"
    assert greedy.recipe["temperature"] == [0.0]
    assert isinstance(tiny.recipe["window"], dict)
    assert opened("tiny.en", window="full").recipe["window"] == "full"


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "config.json"])
def test_damaged_weights_are_a_model_error(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(whisper("tiny.en").folder, copy)
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        WhisperTranscriber(str(copy), TranscriberOptions(device="cpu"))


def test_features_of_the_wrong_size_are_a_model_error(tmp_path: Path) -> None:
    copy = tmp_path / "wrong"
    shutil.copytree(whisper("tiny.en").folder, copy)
    (copy / "preprocessor_config.json").write_text('{"feature_size": 128}')
    with pytest.raises(ModelError, match=r"wants 80 mel bands.*says 128"):
        WhisperTranscriber(str(copy), TranscriberOptions(device="cpu"))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    whisper("tiny.en")
    fresh = WhisperTranscriber("tiny.en", TranscriberOptions(device="cpu"))
    fresh.transcribe([Speech(speech(LOBSTERS)), Speech(zeros(1))])
    assert capfd.readouterr() == ("", "")
