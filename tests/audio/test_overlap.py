"""Two people at once where channels are mixed, and a far end that is left out: found, and told
apart from one voice that comes into both channels in whatever way."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import speechmill
from speechmill import audio
from speechmill.audio import decode
from speechmill.audio.overlap import FRAME_S, HOP, WINDOW, Activity
from speechmill.errors import DamagedError
from speechmill.records import Waveform
from tests.conftest import SHARED_DATA
from tests.support import corpus
from tests.support.audio_files import pcm_wav, sf_bytes

DEMO = Path(__file__).parents[2] / "examples" / "corpus"
RATE = 16_000
VOICES = ("p901", "p902", "p903", "p904", "p905", "p906")
Samples = NDArray[np.float32]


@cache
def voice(speaker: str, seconds: float = 8.0) -> Samples:
    """So much of a speaker's clips, one after the other, without the pauses at their ends."""
    parts: list[Samples] = []
    for path in sorted((DEMO / speaker).glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        samples = audio.resample(Waveform(samples, rate), RATE).samples
        loud = np.flatnonzero(np.abs(samples) > 0.02)
        parts.append(samples[loud[0] : loud[-1]])
    joined = np.resize(np.concatenate(parts), int(seconds * RATE))
    return np.asarray(0.3 * joined / np.abs(joined).max(), np.float32)


def noise(seed: int, db: float, length: int) -> Samples:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(length) * 10 ** (db / 20)).astype(np.float32)


def in_room(samples: Samples, t60_s: float, direct_db: float, seed: int) -> Samples:
    t = np.arange(int(t60_s * RATE)) / RATE
    tail = np.random.default_rng(seed).standard_normal(len(t)) * 10 ** (-3 * t / t60_s)
    tail *= 10 ** (-direct_db / 20) / np.linalg.norm(tail)
    tail[0] = 1
    size = 1 << (len(samples) + len(tail)).bit_length()
    there = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return (0.5 * there[: len(samples)]).astype(np.float32)


def late(samples: Samples, seconds: float) -> Samples:
    return np.concatenate([np.zeros(int(seconds * RATE), np.float32), samples])[: len(samples)]


def heard(*channels: Samples, rate: int = RATE) -> audio.Decoded:
    return decode(sf_bytes("WAV", "PCM_16", np.stack(channels), rate))


def test_two_who_speak_at_once_are_found_for_every_pair() -> None:
    for one, other in pairwise(VOICES):
        overlaps = heard(voice(one), voice(other)).overlaps
        assert sum(end - first for first, end in overlaps) > 4.0, (one, other)
        assert all(0 <= first < end <= 8.0 for first, end in overlaps)
        assert all(a[1] < b[0] for a, b in pairwise(overlaps))


@settings(max_examples=20)
@given(
    speaker=st.sampled_from(VOICES),
    gain=st.floats(0.05, 1.0),
    delay_s=st.floats(0.0, 0.32),
    noise_db=st.floats(-90.0, -40.0),
    seed=st.integers(0, 99),
)
def test_one_voice_in_two_channels_is_not_two(
    speaker: str, gain: float, delay_s: float, noise_db: float, seed: int
) -> None:
    one = voice(speaker)
    other = np.float32(gain) * late(one, delay_s) + noise(seed, noise_db, len(one))
    decoded = heard(one, other)
    assert decoded.overlaps == ()
    assert "quiet_channel" not in decoded.flags


@settings(max_examples=12)
@given(
    speaker=st.sampled_from(VOICES),
    t60_s=st.floats(0.2, 1.0),
    direct_db=st.floats(-6.0, 6.0),
    both=st.booleans(),
    seed=st.integers(0, 99),
)
def test_nor_is_it_in_a_room(
    speaker: str, t60_s: float, direct_db: float, both: bool, seed: int
) -> None:
    one = voice(speaker)
    there = in_room(one, t60_s, direct_db, seed)
    here = in_room(one, t60_s, direct_db, seed + 1) if both else one
    assert heard(here, there).overlaps == ()


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_who_speaks_in_turn_does_not_speak_at_once(pause_s: float, leak: float) -> None:
    """Also where the next one begins as soon as the one before has ended."""
    pause = np.zeros(int(pause_s * RATE), np.float32)
    for first, second in pairwise(VOICES):
        one, other = voice(first, 4.0), voice(second, 4.0)
        left = np.concatenate([one, pause, np.zeros_like(other)])
        right = np.concatenate([np.zeros_like(one), pause, other])
        hiss = [noise(seed, -60, len(left)) for seed in (1, 2)]
        call = heard(
            left + np.float32(leak) * right + hiss[0], right + np.float32(leak) * left + hiss[1]
        )
        assert (call.overlaps, call.flags) == ((), ()), (first, second)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_what_is_found_lies_where_it_is_at_every_rate(rate: int) -> None:
    """Two seconds at once, between others of one alone."""
    one, other = voice("p901", 6.0), voice("p902", 6.0)
    first = np.concatenate([one, np.zeros(4 * RATE, np.float32)])
    second = np.concatenate([np.zeros(4 * RATE, np.float32), other])
    hiss = [noise(seed, -60, len(first)) for seed in (1, 2)]
    channels = [
        audio.resample(Waveform(x, RATE), rate).samples for x in (first + hiss[0], second + hiss[1])
    ]
    overlaps = heard(*channels, rate=rate).overlaps
    begin, end = overlaps[0][0], overlaps[-1][1]
    assert 3.0 < begin < 4.6
    assert 5.4 < end < 7.0


def test_noise_hum_and_silence_are_no_voice() -> None:
    one = voice("p901")
    hum = 0.1 * np.sin(2 * np.pi * 250 * np.arange(len(one)) / RATE).astype(np.float32)
    for other in (np.zeros_like(one), noise(1, -30, len(one)), noise(1, -60, len(one)), hum):
        assert heard(one, other).overlaps == heard(other, one).overlaps == ()
        assert "quiet_channel" not in heard(one, other).flags


@pytest.mark.parametrize("far_db", [-34, -40, -46])
def test_a_far_end_that_is_left_out_is_told(far_db: float) -> None:
    near, far = voice("p901"), voice("p903", 4.0)
    quiet = np.float32(10 ** (far_db / 20)) * np.concatenate([far, np.zeros_like(far)])
    hiss = noise(3, -85, len(near))
    decoded = heard(near, quiet + hiss)
    assert decoded.flags == ("one_channel", "quiet_channel")
    assert decoded.overlaps == ()  # it is not in the mix
    assert heard(quiet + hiss, near).flags == ("one_channel", "quiet_channel")
    leak = np.float32(10 ** (far_db / 20)) * late(near, 0.02)
    assert heard(near, leak + hiss).flags == ("one_channel",)
    assert decode(sf_bytes("WAV", "PCM_16", np.stack([near, quiet])), channel=1).flags == ()


def test_of_three_channels_the_pair_that_differs_is_found() -> None:
    one, other = voice("p901"), voice("p904")
    assert heard(one, late(one, 0.01), np.float32(0.5) * one).overlaps == ()
    assert heard(one, late(one, 0.01), other).overlaps
    assert heard(one, np.zeros_like(one), other).overlaps
    left_out = np.float32(0.005) * voice("p902")
    assert heard(one, late(one, 0.01), left_out).flags == ("quiet_channel",)


def test_many_channels_and_rates_without_speech_are_looked_at_in_vain() -> None:
    rng = np.random.default_rng(1)
    many = rng.uniform(-0.3, 0.3, (20, RATE)).astype(np.float32)
    assert decode(pcm_wav(many)).overlaps == ()
    assert decode(pcm_wav(many[:2], 1_000)).overlaps == ()
    assert decode(pcm_wav(many[:2, :7])).overlaps == ()


@given(rate=st.integers(1_000, 200_000), count=st.integers(1, 4))
def test_every_rate_can_be_looked_at(rate: int, count: int) -> None:
    two = np.random.default_rng(rate).uniform(-0.3, 0.3, (2, count * rate // 4))
    activity = Activity(rate, 2)
    activity.add(two.astype(np.float32))
    assert activity.overlaps(np.arange(2)) == ()


def test_samples_that_are_no_sound_make_no_trouble() -> None:
    wild = np.stack([voice("p901"), voice("p902")]) * np.float32(1e30)
    with pytest.raises(DamagedError, match="is no sound"):
        decode(pcm_wav(wild))


@given(st.lists(st.integers(1, 9_000), max_size=30), st.sampled_from([8_000, 11_025, 16_000]))
@settings(max_examples=20)
def test_it_does_not_depend_on_the_blocks(lengths: list[int], rate: int) -> None:
    two = np.stack([voice("p901"), voice("p902")])
    whole, pieces = Activity(rate, 2), Activity(rate, 2)
    whole.add(two)
    at = 0
    for length in [*lengths, two.shape[1]]:
        pieces.add(two[:, at : at + length])
        at += length
    both = np.arange(2)
    assert whole.overlaps(both) == pieces.overlaps(both)


def test_memory_does_not_grow_with_the_samples() -> None:
    """Some bytes are kept of each half second, which are all that grows."""
    activity = Activity(RATE, 2)
    block = np.stack([voice("p901"), voice("p902")])
    for _ in range(10):
        activity.add(block)
    held: list[Any] = [activity._energies, activity._rest]
    assert sum(array.nbytes for array in held) < 20_000
    assert len(activity._levels) == pytest.approx(80 / (HOP * FRAME_S), abs=WINDOW / HOP + 1)


def test_rows_with_two_voices_are_flagged_and_others_are_not() -> None:
    """Of a call that is cut into rows, only those in which both speak."""
    one, other = voice("p901", 6.0), voice("p902", 6.0)
    pause = np.zeros(5 * RATE, np.float32)
    first = np.concatenate([one, pause, one])
    second = np.concatenate([np.zeros_like(one), pause, other])
    hiss = [noise(seed, -65, len(first)) for seed in (1, 2)]
    call = sf_bytes("WAV", "PCM_16", np.stack([first + hiss[0], second + hiss[1]]))
    source, sink = corpus.memory({"p1/call.wav": call}), corpus.memory()
    corpus.build(source, sink, segment="vad")
    rows = rows_of(sink)
    for row in rows:
        together = row["start_s"] > 9.0
        assert ("overlapped_speech" in row["flags"]) == together, (row["start_s"], row["flags"])
    assert {row["start_s"] > 9.0 for row in rows} == {True, False}


def rows_of(sink: str) -> list[dict[str, Any]]:
    columns = ["start_s", "end_s", "flags"]
    found: list[dict[str, Any]] = speechmill.open_dataset(sink).to_table(columns).to_pylist()
    return found


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared recordings are not here")
def test_real_stereo_recordings_are_told_apart() -> None:
    def of(name: str) -> audio.Decoded:
        return decode((SHARED_DATA / "oddities" / name).read_bytes())

    assert of("formats/stereo_p225_left_p226_right.wav").overlaps
    for name in (
        "formats/stereo_p225_antiphase.flac",
        "formats/stereo_p225_right_only.flac",
        "jfk/jfk.flac",
    ):
        found = of(name)
        assert found.overlaps == ()
        assert "quiet_channel" not in found.flags
