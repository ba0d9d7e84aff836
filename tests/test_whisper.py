"""Whisper: the words are there where speech is, and only there; a rerun gives the same."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.transcribers import resolve_compute_type
from speechmill.transcribers import whisper as whisper_module
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.voice import FRAME, VoiceOptions, _spans, voice_spans
from speechmill.transcribers.whisper import WhisperTranscriber
from tests.weights import SAMPLE_RATE, speech, whisper

LOBSTERS = "speech/367/367-130732-0000.flac"  # "Lobsters and lobsters", 2.4 s
CHURCHYARDS = "speech/533/533-1066-0000.flac"  # "When churchyards yawn", 2.6 s
RNG = np.random.default_rng(0)


@cache
def opened(model: str) -> WhisperTranscriber:
    whisper(model)
    return WhisperTranscriber(model, device="cpu", cpu_threads=2)


@pytest.fixture
def tiny() -> WhisperTranscriber:
    """Whisper tiny.en."""
    return opened("tiny.en")


def zeros(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def white(seconds: float, decibels: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(int(seconds * SAMPLE_RATE)) * 10 ** (decibels / 20)
    return np.clip(noise, -1, 1).astype(np.float32)


def tone(hertz: float) -> NDArray[np.float32]:
    time_s = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def melody() -> NDArray[np.float32]:
    """Two bars of plucked harmonics."""
    time_s = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    notes = [261.6, 329.6, 392.0, 523.3, 440.0, 349.2, 293.7, 392.0]
    pluck = [
        sum(np.sin(2 * np.pi * hertz * k * time_s) / k for k in range(1, 8)) * np.exp(-3 * time_s)
        for hertz in notes * 2
    ]
    return (0.2 * np.concatenate(pluck)).astype(np.float32)


NOT_SPEECH = {
    "zeros": zeros(10),
    "zeros beyond one window": zeros(40),
    "a constant": np.full(3 * SAMPLE_RATE, 0.3, np.float32),
    "one impulse": np.eye(1, SAMPLE_RATE, 5000, dtype=np.float32)[0],
    "the last bit": (RNG.integers(-1, 2, 5 * SAMPLE_RATE) / 32_768).astype(np.float32),
    "faint noise": white(10, -60),
    "noise": white(10, -20),
    "loud noise": white(10, -3),
    "long noise": white(60, -30),
    "a low tone": tone(100),
    "a tone": tone(1000),
    "music": melody(),
}


@pytest.mark.parametrize("kind", NOT_SPEECH)
def test_what_is_no_speech_becomes_no_words(kind: str, tiny: WhisperTranscriber) -> None:
    transcript = tiny.transcribe([NOT_SPEECH[kind]])[0]
    assert transcript.text == ""
    assert transcript.flags == ("no_voice",)
    assert transcript.no_speech_prob is not None
    assert transcript.no_speech_prob > 0.5
    assert transcript.language is None


@pytest.mark.parametrize(
    "name",
    [
        "silence_zeros_10s_16k.flac",
        "silence_zeros_40s_16k.flac",
        "noise_-20dB_10s_44k.wav",
        "noise_-60dB_10s_16k.flac",
        "tone_1k_3s_8k.wav",
        "music_chords_20s_44k_stereo.flac",
    ],
)
def test_recordings_without_speech_become_no_words(name: str, tiny: WhisperTranscriber) -> None:
    assert tiny.transcribe([speech(f"oddities/nonspeech/{name}")])[0].text == ""


def distorted() -> dict[str, NDArray[np.float32]]:
    clean = speech(LOBSTERS)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(len(clean)).astype(np.float32) * float(np.sqrt(np.mean(clean**2)))
    return {
        "quiet": clean * np.float32(0.01),
        "very quiet": clean * np.float32(0.001),
        "clipped": np.clip(clean * np.float32(31.6), -1, 1),
        "inside long silence": np.concatenate([zeros(8), clean, zeros(25)]),
        "after half a minute": np.concatenate([zeros(33), clean]),
        "in noise as loud": clean + noise,
    }


@pytest.mark.parametrize("how", ["quiet", "clipped", "inside long silence", "after half a minute"])
def test_speech_under_hard_conditions_is_not_lost(how: str, tiny: WhisperTranscriber) -> None:
    waveform = distorted()[how]
    transcript = tiny.transcribe([waveform])[0]
    words = transcript.text.lower().replace(".", "").split()
    assert len(words) == 3, transcript.text  # lobsters and lobsters, and nothing made up
    assert words[1] == "and"
    assert words[2].startswith("lobster")


@pytest.mark.parametrize("how", ["very quiet", "in noise as loud"])
def test_voices_are_heard_where_words_hardly_are(how: str) -> None:
    assert voice_spans(distorted()[how], VoiceOptions())[0]


def test_a_fifth_of_a_second_of_speech_is_heard() -> None:
    clean = speech(LOBSTERS)
    for start_s in (0.5, 1.1, 1.3):
        start = int(start_s * SAMPLE_RATE)
        cut = clean[start : start + SAMPLE_RATE // 5]
        assert voice_spans(cut, VoiceOptions())[0], start_s


def test_a_quiet_speaker_beside_a_loud_one_is_heard() -> None:
    loud, quiet = speech(CHURCHYARDS), speech(LOBSTERS) * np.float32(0.01)
    spans, _ = voice_spans(np.concatenate([loud, zeros(9), quiet]), VoiceOptions())
    assert len(spans) == 2
    assert spans[1][0] > len(loud) / SAMPLE_RATE + 6


def test_times_are_those_of_the_whole_waveform(tiny: WhisperTranscriber) -> None:
    first, second = speech(CHURCHYARDS), speech(LOBSTERS)
    waveform = np.concatenate([zeros(8), first, zeros(30), second, zeros(9)])
    segments = tiny.transcribe([waveform])[0].segments
    assert len(segments) == 2
    first_end_s = 8 + len(first) / SAMPLE_RATE
    assert 6.5 <= segments[0].start_s <= 9
    assert segments[0].end_s <= first_end_s + 1.5
    assert segments[1].start_s >= first_end_s + 28.5
    assert "lobster" in segments[1].text.lower()


@given(
    voiced=st.lists(st.booleans(), min_size=1, max_size=2000).filter(any),
    tail=st.integers(1, FRAME),
    min_gap_s=st.sampled_from([2.0, 5.0]),
)
def test_spans_are_apart_and_hold_every_voice(
    voiced: list[bool], tail: int, min_gap_s: float
) -> None:
    options = VoiceOptions(min_gap_s=min_gap_s, pad_s=1.0)
    duration_s = ((len(voiced) - 1) * FRAME + tail) / SAMPLE_RATE
    spans = _spans(np.asarray(voiced, np.float32), duration_s, options)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= duration_s
    for frame in np.flatnonzero(voiced):
        start_s = frame * FRAME / SAMPLE_RATE
        end_s = min(start_s + FRAME / SAMPLE_RATE, duration_s)
        assert any(start <= start_s and end_s <= end for start, end in spans)
    # What is left out is silence: a pause less what is kept of it on either side.
    left_out_s = duration_s - sum(end - start for start, end in spans)
    silent_s = voiced.count(False) * FRAME / SAMPLE_RATE
    assert left_out_s <= silent_s + 1e-6


def test_pieces_of_a_long_recording_are_heard_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = np.concatenate([speech(CHURCHYARDS), zeros(6), speech(LOBSTERS), zeros(6)] * 3)
    whole = voice_spans(waveform, VoiceOptions())[0]
    monkeypatch.setattr("speechmill.transcribers.voice.PIECE", 5 * SAMPLE_RATE // FRAME * FRAME)
    pieces = voice_spans(waveform, VoiceOptions())[0]
    assert np.allclose(pieces, whole, atol=0.1)


def test_words_are_those_of_faster_whisper(tiny: WhisperTranscriber) -> None:
    from faster_whisper import WhisperModel

    peer = WhisperModel(
        str(whisper("tiny.en").folder), device="cpu", compute_type="int8", cpu_threads=2
    )
    for path in (LOBSTERS, "speech/fleurs_en/fleurs-en-003.ogg", "oddities/jfk/jfk.flac"):
        segments, _ = peer.transcribe(speech(path), beam_size=5)
        expected = "".join(segment.text for segment in segments).strip()
        assert tiny.transcribe([speech(path)])[0].text == expected


def test_a_rerun_gives_the_same_text_though_the_fallback_draws_lots(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No text is sure enough and none is silence, so every temperature is tried.
    monkeypatch.setitem(whisper_module.DECODING, "log_prob_threshold", 0.0)
    monkeypatch.setitem(whisper_module.DECODING, "no_speech_threshold", 1.0)
    monkeypatch.setitem(whisper_module.DECODING, "temperature", [1.0])
    monkeypatch.setitem(whisper_module.DECODING, "best_of", 1)
    once = tiny.transcribe([speech(LOBSTERS), speech(CHURCHYARDS)])
    again = tiny.transcribe([speech(CHURCHYARDS)]) + tiny.transcribe([speech(LOBSTERS)])
    fresh = WhisperTranscriber("tiny.en", device="cpu", cpu_threads=2)
    assert once == again[::-1]
    assert fresh.transcribe([speech(LOBSTERS)]) == once[:1]
    assert all("temperature_fallback" in transcript.flags for transcript in once)


def test_other_languages_are_detected_and_transcribed() -> None:
    transcript = opened("base").transcribe([speech("speech/fleurs_de/fleurs-de-004.ogg")])[0]
    assert transcript.language == "de"
    assert transcript.language_probability is not None
    assert transcript.language_probability > 0.9
    assert "höhle" in transcript.text.lower()
    assert transcript.flags == ()


def test_a_language_that_is_given_has_no_probability() -> None:
    whisper("base")
    english = WhisperTranscriber("base", language="English", device="cpu", cpu_threads=2)
    transcript = english.transcribe([speech(CHURCHYARDS)])[0]
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
        WhisperTranscriber("tiny.en", language=language, device="cpu")


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
    elsewhere = WhisperTranscriber(str(copy), device="cpu", cpu_threads=1)
    assert elsewhere.recipe == tiny.recipe
    assert elsewhere.provenance != tiny.provenance
    text = json.dumps(tiny.recipe)
    assert whisper("tiny.en").digests["model.bin"] in text
    assert "cpu" not in text
    assert str(copy) not in text
    greedy = WhisperTranscriber("tiny.en", beam_size=1, device="cpu", compute_type="float32")
    assert greedy.recipe["beam_size"] == 1
    assert greedy.recipe["compute_type"] == "float32"


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "config.json"])
def test_damaged_weights_are_a_model_error(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(whisper("tiny.en").folder, copy)
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        WhisperTranscriber(str(copy), device="cpu")


def test_features_of_the_wrong_size_are_a_model_error(tmp_path: Path) -> None:
    copy = tmp_path / "wrong"
    shutil.copytree(whisper("tiny.en").folder, copy)
    (copy / "preprocessor_config.json").write_text('{"feature_size": 128}')
    with pytest.raises(ModelError, match=r"wants 80 mel bands.*says 128"):
        WhisperTranscriber(str(copy), device="cpu")


def test_nothing_is_printed(tiny: WhisperTranscriber, capfd: pytest.CaptureFixture[str]) -> None:
    WhisperTranscriber("tiny.en", device="cpu").transcribe(
        [speech(LOBSTERS), zeros(1), white(1, 0)]
    )
    assert capfd.readouterr() == ("", "")
