"""Windows as long as the speech needs: the words of a full one, and none where nobody speaks."""

from __future__ import annotations

import re
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from whisper_normalizer.english import EnglishTextNormalizer

from speechmill import Job, build, open_dataset
from speechmill.audio import decode, resample
from speechmill.errors import ModelError
from speechmill.records import Speech, Transcript
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers import whisper as whisper_module
from speechmill.transcribers.encoder import MelFilters
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.transcribers.windows import FULL_WINDOW_S, WindowOptions
from tests.support.weights import SAMPLE_RATE, speech, whisper
from tests.support.whispers import CLIPS, JFK, chime, one, opened, zeros

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


def corpus_clips() -> list[Path]:
    """Recordings of the demo corpus, a sentence each."""
    return sorted(CORPUS.rglob("*.flac"))


def corpus_speech(path: Path) -> NDArray[np.float32]:
    return resample(decode(path.read_bytes()).waveform, SAMPLE_RATE).samples


def said(path: Path) -> str:
    return path.with_suffix(".txt").read_text(encoding="utf-8")


def word_error_rate(expected: list[str], found: list[Transcript]) -> float:
    normal = EnglishTextNormalizer()
    return float(jiwer.wer([*map(normal, expected)], [normal(t.text) for t in found]))


@pytest.fixture
def tiny() -> WhisperTranscriber:
    """Whisper tiny.en."""
    return opened("tiny.en")


def test_the_full_window_says_what_faster_whisper_says() -> None:
    from faster_whisper import WhisperModel

    peer = WhisperModel(
        str(whisper("tiny.en").folder), device="cpu", compute_type="int8", cpu_threads=2
    )
    # Sums in another order: on some processors that decides between "And so" and "And so,".
    peer.feature_extractor.mel_filters = MelFilters(peer.feature_extractor.mel_filters)
    full = opened("tiny.en", window="full", words=True)
    for path in CLIPS[:3]:
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
    samples = [Speech(speech(path)) for path in CLIPS]
    adaptive = opened("base", language="en").transcribe(samples)
    full = opened("base", language="en", window="full").transcribe(samples)
    assert all((t.window_s or 0) < FULL_WINDOW_S for t in adaptive[2:])
    assert word_error_rate([t.text for t in full], adaptive) < 0.12


def test_bells_that_are_like_a_voice_say_nothing(tmp_path: Path) -> None:
    seeds = (19, 99)  # bare Whisper makes "You" of the first, and dots of the last
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


def test_a_prompt_that_is_written_down_where_nobody_speaks_is_made_up() -> None:
    seeds = (19, 29)
    prompted = opened("base", initial_prompt="Glossary: Speechmill, Zau al-Makan.")
    told = prompted.transcribe([Speech(chime(seed), ((0.1, 0.6),), "en", 1.0) for seed in seeds])
    assert [t.text for t in told] == [""] * len(seeds)


def test_real_speech_is_neither_doubted_nor_left_out(tiny: WhisperTranscriber) -> None:
    paths = corpus_clips()[::3]
    found = tiny.transcribe([Speech(corpus_speech(path)) for path in paths])
    assert word_error_rate([said(path) for path in paths], found) < 0.2
    assert [transcript.flags for transcript in found] == [()] * len(paths)
    assert max(transcript.window_s or 0 for transcript in found) < 6


@pytest.mark.parametrize("pause_s", [0.0, 0.3, 1.0])
def test_a_sentence_that_is_said_twice_is_heard_again_in_the_full_window_and_is_kept(
    tiny: WhisperTranscriber, pause_s: float
) -> None:
    """The decoder that loops gives the same text: only the full window tells who repeats."""
    (path, *_) = corpus_clips()  # "The ferry leaves at a quarter past seven, not at eight."
    once = corpus_speech(path)
    transcript = one(tiny, np.concatenate([once, zeros(pause_s), once]))
    assert len(re.findall("leaves at a quarter", transcript.text)) == 2
    assert "window_fallback" in transcript.flags
    assert transcript.window_s == FULL_WINDOW_S


def test_what_loops_for_want_of_silence_is_heard_again_in_a_wider_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = WindowOptions(silence_s=0.0, pad_s=0.0)
    monkeypatch.setattr(whisper_module, "WindowOptions", lambda: bare)
    options = TranscriberOptions(device="cpu", cpu_threads=2)
    transcriber = WhisperTranscriber("tiny.en", options)
    paths = corpus_clips()[::4]
    samples = [corpus_speech(path) for path in paths]
    found = transcriber.transcribe([Speech(one) for one in samples])
    first = [bare.window_s(len(one), SAMPLE_RATE) for one in samples]
    wider = [t for t, w in zip(found, first, strict=True) if t.window_s == w + bare.wider_s]
    assert wider
    assert all(transcript.flags == () for transcript in wider)
    assert word_error_rate([said(path) for path in paths], found) < 0.25


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 5.0])
def test_neither_noise_nor_silence_says_anything(tiny: WhisperTranscriber, seconds: float) -> None:
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)) * 0.05
    found = tiny.transcribe([Speech(zeros(seconds)), Speech(noise.astype(np.float32))])
    assert [transcript.text for transcript in found] == ["", ""]
    assert all("no_words" in transcript.flags for transcript in found)


def test_a_word_or_two_by_themselves_are_heard(tiny: WhisperTranscriber) -> None:
    """What is too short to be sure of is flagged, not dropped."""
    first, _, third, *_ = corpus_clips()  # "Margaret keeps …"
    for path, word in ((first, "ferry"), (third, "margaret")):
        start = SAMPLE_RATE // 5
        crumb = one(tiny, corpus_speech(path)[start : start + SAMPLE_RATE // 2])
        assert word in crumb.text.lower()
        assert set(crumb.flags) <= {"low_confidence"}


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
