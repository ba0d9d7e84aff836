"""The MFCC tokenizer gives what ``librosa.feature.mfcc`` gives, at any length, on any thread."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.mfcc import MfccTokenizer
from tests.support.weights import speech


def noise(num_samples: int, seed: int = 0, amplitude: float = 0.1) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (amplitude * rng.standard_normal(num_samples)).astype(np.float32)


def librosa_mfcc(
    waveform: NDArray[np.float32], sample_rate: int, n_mfcc: int
) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns of short signals and empty mel filters
        return np.asarray(librosa.feature.mfcc(y=waveform, sr=sample_rate, n_mfcc=n_mfcc))


def assert_equal_to_librosa(
    waveform: NDArray[np.float32], sample_rate: int = 16_000, n_mfcc: int = 20
) -> None:
    tokenizer = MfccTokenizer(n_mfcc=n_mfcc, sample_rate=sample_rate)
    ours = tokenizer.encode([waveform])[0].values
    theirs = librosa_mfcc(waveform, sample_rate, n_mfcc)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (n_mfcc, 1 + len(waveform) // 512)
    # A hundredth of what is asked for (1e-4 of the scale), so that there is room.
    assert np.abs(ours - theirs).max() <= 1e-6 * max(1.0, float(np.abs(theirs).max()))


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(1, 40_000),
    sample_rate=st.sampled_from([1_000, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 96_000]),
    n_mfcc=st.integers(1, 128),
    seed=st.integers(0, 1000),
    amplitude=st.sampled_from([1e-6, 1e-3, 0.1, 1.0]),
)
@example(num_samples=1, sample_rate=16_000, n_mfcc=20, seed=0, amplitude=0.1)
@example(num_samples=2047, sample_rate=16_000, n_mfcc=20, seed=0, amplitude=0.1)
@example(num_samples=256 * 512, sample_rate=16_000, n_mfcc=20, seed=0, amplitude=0.1)
@example(num_samples=257 * 512 - 1, sample_rate=16_000, n_mfcc=20, seed=0, amplitude=0.1)
def test_equals_librosa_at_any_length_and_rate(
    num_samples: int, sample_rate: int, n_mfcc: int, seed: int, amplitude: float
) -> None:
    assert_equal_to_librosa(noise(num_samples, seed, amplitude), sample_rate, n_mfcc)


@pytest.mark.parametrize("sample_rate", [192_000, 384_000])
def test_equals_librosa_where_the_lowest_mel_filters_hold_no_bin(sample_rate: int) -> None:
    assert_equal_to_librosa(noise(30_000), sample_rate)


def test_equals_librosa_on_silence_tones_steps_and_impulses() -> None:
    time_s = np.arange(20_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)
    step = np.concatenate([np.zeros(10_000), np.ones(10_000)]).astype(np.float32)
    impulse = np.eye(1, 20_000, 7_000, dtype=np.float32)[0]
    for waveform in (np.zeros(20_000, np.float32), np.ones(20_000, np.float32), tone, step):
        assert_equal_to_librosa(waveform)
    assert_equal_to_librosa(impulse)


@pytest.mark.parametrize(
    "path", ["speech/367/367-130732-0000.flac", "speech/fleurs_de/fleurs-de-000.ogg"]
)
def test_equals_librosa_on_speech(path: str) -> None:
    assert_equal_to_librosa(speech(path))
    assert_equal_to_librosa(speech(path), n_mfcc=13)


def test_minutes_long_recording_equals_librosa() -> None:
    assert_equal_to_librosa(noise(3 * 60 * 16_000))


def test_short_waveforms_give_no_warning() -> None:
    tokenizer = MfccTokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for num_samples in (0, 1, 2, 511, 512, 1023, 2047):
            values = tokenizer.encode([noise(num_samples)])[0].values
            assert values.shape == (20, 1 + num_samples // 512)
            assert np.isfinite(values).all()


def test_threads_give_what_one_thread_gives() -> None:
    tokenizer = MfccTokenizer()
    waveforms = [noise(8_000 + 37 * i, seed=i) for i in range(40)]
    alone = [tokenizer.encode([w])[0].values for w in waveforms]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda w: tokenizer.encode([w])[0].values, waveforms))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_values_do_not_depend_on_the_number_of_cores() -> None:
    program = (
        "import hashlib, numpy as np\n"
        "from speechmill.tokenizers.mfcc import MfccTokenizer\n"
        "w = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)\n"
        "print(hashlib.sha256(MfccTokenizer().encode([w])[0].values.tobytes()).hexdigest())\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n_mfcc": 0}, "between 1 and 128, not 0"),
        ({"n_mfcc": 129}, "between 1 and 128, not 129"),
        ({"sample_rate": 10}, "sample_rate must be between"),
        ({"n_mfcc": 20.0}, "must be of type int"),
        ({"n_mfcc": True}, "must be of type int"),
        ({"n_mfc": 20}, r"no option 'n_mfc'; did you mean 'n_mfcc'\?"),
    ],
)
def test_wrong_options_say_what_is_right(
    options: dict[str, int | float | str | bool], complaint: str
) -> None:
    with pytest.raises(JobError, match=complaint):
        open_tokenizer("mfcc", options)
