"""Two stretches of speech are told apart if two people speak, and only then."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.speech.segmentation import SegmentOptions
from speechmill.speech.speaker_change import NUM_CEPSTRA, CepstralSums, cepstra, speaker_change
from speechmill.speech.voice import Voice, VoiceOptions, listen
from tests.support.weights import speech

LIMIT = SegmentOptions().max_change

READERS = {
    folder: [f"speech/{folder}/{folder}-{chapter}-{number:04}.flac" for number in range(5)]
    for folder, chapter in (
        ("1688", "142285"),
        ("1998", "15444"),
        ("2033", "164914"),
        ("367", "130732"),
        ("533", "1066"),
    )
}


def vectors(count: int, seed: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.5, 5, NUM_CEPSTRA), rng.uniform(-5, 5, NUM_CEPSTRA)
    return (rng.standard_normal((count, NUM_CEPSTRA)) * scale + offset).astype(np.float16)


@cache
def read(path: str) -> CepstralSums:
    samples = speech(path)
    voice: Voice = listen(lambda start, end: samples[start:end], len(samples), VoiceOptions())
    return CepstralSums.of(voice.cepstra[voice.probabilities >= VoiceOptions().threshold])


def test_readers_of_audiobooks_are_told_apart() -> None:
    alike = [
        speaker_change(read(one), read(other))
        for paths in READERS.values()
        for one, other in combinations(paths, 2)
    ]
    apart = [
        speaker_change(read(one), read(other))
        for first, second in combinations(READERS.values(), 2)
        for one in first
        for other in second
    ]
    assert np.mean(np.asarray(alike) <= LIMIT) >= 0.9
    assert np.mean(np.asarray(apart) > LIMIT) >= 0.9


@pytest.mark.parametrize("gain", [0.01, 0.1])
def test_another_distance_is_another_speaker(gain: float) -> None:
    samples = speech(READERS["1998"][0])
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    near, far = cepstra(frames[::2]), cepstra(frames[1::2] * np.float32(gain))
    assert speaker_change(CepstralSums.of(near), CepstralSums.of(cepstra(frames[1::2]))) < LIMIT
    assert speaker_change(CepstralSums.of(near), CepstralSums.of(far)) > LIMIT


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 9))
def test_sums_of_parts_are_those_of_the_whole(first: int, second: int, seed: int) -> None:
    whole = vectors(first + second, seed)
    parts = CepstralSums.of(whole[:first]) + CepstralSums.of(whole[first:])
    together = CepstralSums.of(whole)
    assert parts.count == together.count
    np.testing.assert_allclose(parts.total, together.total, atol=1e-6)
    np.testing.assert_allclose(parts.products, together.products, atol=1e-5)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_who_is_first_makes_no_difference_and_nothing_is_nobody(
    first: int, second: int, seed: int
) -> None:
    left, right = CepstralSums.of(vectors(first, seed)), CepstralSums.of(vectors(second, seed + 1))
    assert speaker_change(left, right) == pytest.approx(speaker_change(right, left))
    assert speaker_change(left, left) < 0.1  # nothing but rounding
    if not first or not second:
        assert speaker_change(left, right) == 0.0


def test_cepstra_are_those_of_the_definition() -> None:
    """What is louder by a factor has another c0 and nothing else; other bands, other cepstra; and
    what is silent, the least power in each band."""
    time_s = np.arange(512) / 16_000
    frames = (0.1 * np.sin(2 * np.pi * np.outer([1000.0, 1000.0, 4000.0], time_s))).astype(
        np.float32
    )
    frames[1] *= 10
    noise = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    tone, louder, other = cepstra(frames + 0.01 * noise).astype(np.float64)
    assert louder[0] > tone[0] + 1
    loud = cepstra(10 * noise).astype(np.float64) - cepstra(noise).astype(np.float64)
    assert loud[0, 0] == pytest.approx(np.log(100) * np.sqrt(24), abs=0.1)  # of power, by the DCT
    np.testing.assert_allclose(loud[0, 1:], 0, atol=0.05)
    assert np.abs(tone[1:] - other[1:]).max() > 3
    silence = cepstra(np.zeros((2, 512), np.float32))
    assert silence.shape == (2, NUM_CEPSTRA)
    np.testing.assert_allclose(silence[0, 0], np.log(1e-9) * np.sqrt(24), rtol=1e-3)
    np.testing.assert_allclose(silence[:, 1:], 0, atol=0.1)
