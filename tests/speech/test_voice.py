"""Voices are heard where there are some, however faint, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.audio import resample
from speechmill.records import Waveform
from speechmill.speech import voice as voice_module
from speechmill.speech.speaker_change import NUM_CEPSTRA, cepstra
from speechmill.speech.voice import (
    FRAME,
    SAMPLE_RATE,
    Voice,
    VoiceOptions,
    listen,
    voice_model_digests,
    voice_spans,
)
from tests.support.weights import speech

LOBSTERS = "speech/367/367-130732-0000.flac"  # "Lobsters and lobsters", 2.4 s
CHURCHYARDS = "speech/533/533-1066-0000.flac"  # "When churchyards yawn", 2.6 s
OPTIONS = VoiceOptions()


def zeros(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def white(seconds: float, decibels: float) -> NDArray[np.float32]:
    noise = np.random.default_rng(1).standard_normal(int(seconds * SAMPLE_RATE))
    return np.clip(noise * 10 ** (decibels / 20), -1, 1).astype(np.float32)


def white_at(sample_rate: int, seconds: int) -> NDArray[np.float32]:
    """White noise that was recorded at another rate: thinned out just below 8 kHz."""
    noise = np.random.default_rng(10).standard_normal(seconds * sample_rate).astype(np.float32)
    return resample(Waveform(noise * np.float32(0.03), sample_rate), SAMPLE_RATE).samples


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
    "nothing": zeros(0),
    "zeros": zeros(10),
    "a constant": np.full(3 * SAMPLE_RATE, 0.3, np.float32),
    "one impulse": np.eye(1, SAMPLE_RATE, 5000, dtype=np.float32)[0],
    "the last bit": (np.random.default_rng(0).integers(-1, 2, 5 * SAMPLE_RATE) / 32_768).astype(
        np.float32
    ),
    "faint noise": white(10, -60),
    "noise": white(10, -20),
    "loud noise": white(10, -3),
    "long noise": white(60, -30),
    "long noise at 22.05 kHz": white_at(22_050, 60),
    "long noise at 44.1 kHz": white_at(44_100, 60),
    "long noise at 48 kHz": white_at(48_000, 60),
    "a low tone": tone(100),
    "a tone": tone(1000),
    "music": melody(),
}


def heard(waveform: NDArray[np.float32]) -> Voice:
    return listen(lambda start, end: waveform[start:end], len(waveform), OPTIONS)


def spans(waveform: NDArray[np.float32]) -> list[tuple[float, float]]:
    return voice_spans(heard(waveform), OPTIONS)


@pytest.mark.parametrize("kind", NOT_SPEECH)
def test_no_voice_is_heard_in_what_is_no_speech(kind: str) -> None:
    voice = heard(NOT_SPEECH[kind])
    assert voice.highest < OPTIONS.threshold
    assert voice_spans(voice, OPTIONS) == []


def distorted() -> dict[str, NDArray[np.float32]]:
    clean = speech(LOBSTERS)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    return {
        "quiet": clean * np.float32(0.01),
        "very quiet": clean * np.float32(0.001),
        "clipped": np.clip(clean * np.float32(31.6), -1, 1),
        "in noise as loud": clean + noise * np.float32(np.sqrt(np.mean(clean**2))),
    }


@pytest.mark.parametrize("how", ["quiet", "very quiet", "clipped", "in noise as loud"])
def test_voices_are_heard_where_words_hardly_are(how: str) -> None:
    assert spans(distorted()[how])


def test_a_fifth_of_a_second_of_speech_is_heard() -> None:
    clean = speech(LOBSTERS)
    for start_s in (0.5, 1.1, 1.3):
        start = int(start_s * SAMPLE_RATE)
        assert spans(clean[start : start + SAMPLE_RATE // 5]), start_s


def test_a_quiet_speaker_beside_a_loud_one_is_heard() -> None:
    loud, quiet = speech(CHURCHYARDS), speech(LOBSTERS) * np.float32(0.01)
    found = spans(np.concatenate([loud, zeros(9), quiet]))
    assert len(found) == 2
    assert found[1][0] > len(loud) / SAMPLE_RATE + 6


def test_a_quiet_speaker_between_two_loud_ones_is_heard_from_the_first_word() -> None:
    """A long recording of several people has them 40 dB apart; what is amplified by the peak of
    its neighbours would not be heard."""
    loud, quiet = speech(CHURCHYARDS), speech(LOBSTERS) * np.float32(0.01)
    alone = heard(quiet).probabilities >= OPTIONS.threshold
    beside = len(loud) // FRAME * FRAME
    pause = zeros(32 * FRAME / SAMPLE_RATE)
    waveform = np.concatenate([loud[:beside], pause, quiet, pause, loud])
    first = (beside + len(pause)) // FRAME
    found = heard(waveform).probabilities[first : first + len(alone)]
    assert alone.sum() > 20
    assert np.mean(found[alone] >= OPTIONS.span_threshold) >= 0.95


def test_what_is_heard_does_not_depend_on_how_much_is_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet = speech(LOBSTERS) * np.float32(0.01)
    waveform = np.concatenate([speech(CHURCHYARDS), zeros(6), quiet, white(3, -40)] * 3)
    whole = heard(waveform)
    monkeypatch.setattr(voice_module, "PIECE", 5 * SAMPLE_RATE // FRAME * FRAME)
    pieces = heard(waveform)
    assert len(whole.probabilities) == -(-len(waveform) // FRAME)
    # The model's sums are not rounded alike for other numbers of frames.
    np.testing.assert_allclose(pieces.probabilities, whole.probabilities, atol=1e-3)
    np.testing.assert_allclose(pieces.levels_db, whole.levels_db, atol=1e-3)
    np.testing.assert_array_equal(pieces.cepstra, whole.cepstra)


def test_the_timbre_is_that_of_the_voice_as_loud_as_it_was() -> None:
    waveform = speech(CHURCHYARDS)
    quiet = heard(waveform * np.float32(0.01)).cepstra.astype(np.float64)
    loud = heard(waveform).cepstra.astype(np.float64)
    assert np.median(loud[:, 0] - quiet[:, 0]) == pytest.approx(np.log(1e4) * 24**0.5, rel=0.05)
    frames = np.pad(waveform, (0, -len(waveform) % FRAME)).reshape(-1, FRAME)
    plain = cepstra(frames).astype(np.float64)  # but for what is filtered out above 7 kHz
    assert np.median(np.abs(plain - loud)) < 0.05


def test_long_recordings_are_read_a_stretch_at_a_time() -> None:
    longest = 0

    def read(start: int, end: int) -> NDArray[np.float32]:
        nonlocal longest
        longest = max(longest, end - start)
        return np.zeros(end - start, np.float32)

    num_samples = 300 * SAMPLE_RATE + 7
    assert len(listen(read, num_samples, OPTIONS).probabilities) == -(-num_samples // FRAME)
    assert longest <= 150 * SAMPLE_RATE


def test_the_listener_is_faster_whispers_own() -> None:
    """The probabilities that its wrapper gives for a filtered, levelled waveform of one piece."""
    from faster_whisper.vad import get_vad_model

    waveform = speech(CHURCHYARDS)
    at = np.arange(63) - 31
    sinc = np.sinc(at * 7 / 8) * np.hamming(63)
    low = np.convolve(waveform, sinc / sinc.sum(), mode="same").astype(np.float32)
    level = np.float32(0.5 / np.abs(low).max())  # one gain: it is shorter than the window
    padded = np.pad(low * level, (0, -len(low) % FRAME))
    raw = np.pad(np.ravel(get_vad_model()(padded)), 1)
    smooth = (raw[:-2] + raw[1:-1] + raw[2:]) / 3
    np.testing.assert_allclose(heard(waveform).probabilities[:-2], smooth[:-2], atol=1e-4)


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
    probabilities = np.asarray(voiced, np.float32)
    timbre = np.zeros((len(voiced), NUM_CEPSTRA), np.float16)
    found = voice_spans(Voice(probabilities, probabilities, timbre, duration_s), options)
    edges = [edge for span in found for edge in span]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= duration_s
    for frame in np.flatnonzero(voiced):
        start_s = frame * FRAME / SAMPLE_RATE
        end_s = min(start_s + FRAME / SAMPLE_RATE, duration_s)
        assert any(start <= start_s and end_s <= end for start, end in found)
    # What is left out is silence: a pause less what is kept of it on either side.
    left_out_s = duration_s - sum(end - start for start, end in found)
    silent_s = voiced.count(False) * FRAME / SAMPLE_RATE
    assert left_out_s <= silent_s + 1e-6


def test_the_models_digest_costs_no_heavy_import() -> None:
    assert any(len(digest) == 64 for digest in voice_model_digests().values())
    code = (
        "import sys; from speechmill.speech.voice import voice_model_digests as d; d(); "
        "print('faster_whisper' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
