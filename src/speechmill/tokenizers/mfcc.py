"""Mel-frequency cepstral coefficients, equal to ``librosa.feature.mfcc``.

Why not librosa itself: its first call imports numba, which costs seconds and more than 100 MB a
process, and none of it is needed here. It also multiplies matrices with BLAS, whose sums come
out differently in the last bit on one thread and on two; tokens have to be the same wherever they
are made. So there is no matrix product here. ``tests/tokenizers/test_mfcc.py`` holds this and
librosa together.

The steps are those of Davis and Mermelstein (1980) with Slaney's mel scale (Auditory Toolbox,
1998): power spectrogram, mel filters, decibels, discrete cosine transform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.records import Codes

__all__ = ["MfccTokenizer"]

VERSION: Final = 1
"""Raised by hand whenever the values change: it is part of the recipe."""

N_FFT: Final = 2048
HOP_LENGTH: Final = 512
N_MELS: Final = 128
MIN_POWER: Final = 1e-10
TOP_DB: Final = 80.0

SAMPLE_RATES: Final = range(1_000, 384_001)
BLOCK_FRAMES: Final = 256
"""Frames transformed at once: it bounds the memory that an hour of audio takes."""


class MfccTokenizer:
    """MFCCs with librosa's defaults: n_fft 2048, hop 512, 128 mel bands, 80 dB, DCT-II (ortho).

    Args:
        n_mfcc: coefficients a frame, 1 to 128.
        sample_rate: the rate, in Hz, at which the waveform is analysed.

    Raises:
        JobError: an option is out of range.
    """

    name = "mfcc"
    hop_length = HOP_LENGTH
    codebook_size = None

    def __init__(self, *, n_mfcc: int = 20, sample_rate: int = 16_000) -> None:
        if not 1 <= n_mfcc <= N_MELS:
            raise JobError(f"mfcc: n_mfcc must be between 1 and {N_MELS}, not {n_mfcc}")
        if sample_rate not in SAMPLE_RATES:
            raise JobError(
                f"mfcc: sample_rate must be between {SAMPLE_RATES[0]} and {SAMPLE_RATES[-1]} Hz,"
                f" not {sample_rate}"
            )
        self.num_codebooks = n_mfcc
        self.sample_rate = sample_rate
        # Hann, periodic: what scipy.signal.get_window("hann", N_FFT) gives.
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
        self._mel = _MelFilters(sample_rate)
        self._dct = _dct(n_mfcc)

    @property
    def frame_rate(self) -> float:
        """Frames a second, in Hz."""
        return self.sample_rate / HOP_LENGTH

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the values."""
        return {
            "tokenizer": self.name,
            "version": VERSION,
            "n_mfcc": self.num_codebooks,
            "sample_rate": self.sample_rate,
        }

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns float32 [n_mfcc, 1 + num_samples // 512] a waveform, in order.
        """
        return [Codes(self._mfcc(waveform)) for waveform in waveforms]

    def _mfcc(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """[num_samples] → [n_mfcc, num_frames]."""
        log_mel = self.log_mel(waveform)
        mfcc = np.einsum("km,tm->kt", self._dct, log_mel, optimize=False)
        return np.ascontiguousarray(mfcc, np.float32)

    def log_mel(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """[num_samples] → decibels [num_frames, 128], none 80 dB below the loudest.

        Frames are centred, with zeros beyond the ends.
        """
        padded = np.pad(np.asarray(waveform, np.float32), N_FFT // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
        log_mel = np.empty((len(frames), N_MELS), np.float32)
        for start in range(0, len(frames), BLOCK_FRAMES):
            spectrum = np.fft.rfft(frames[start : start + BLOCK_FRAMES] * self._window)
            mel = self._mel(np.square(spectrum.real) + np.square(spectrum.imag))
            log_mel[start : start + BLOCK_FRAMES] = 10 * np.log10(np.maximum(mel, MIN_POWER))
        np.maximum(log_mel, log_mel.max() - TOP_DB, out=log_mel)
        return log_mel


class _MelFilters:
    """Overlapping triangles of equal area, from 0 Hz to half the sample rate.

    A bin of the spectrum lies between two neighbouring edges, so it counts for two filters at
    most: on the rising side of one and on the falling side of the one before.
    """

    def __init__(self, sample_rate: int) -> None:
        edges = _mel_to_hz(np.linspace(0, _hz_to_mel(sample_rate / 2), N_MELS + 2))
        bins = np.fft.rfftfreq(N_FFT, 1 / sample_rate)
        span = np.clip(np.searchsorted(edges, bins, side="right") - 1, 0, N_MELS)
        share = (bins - edges[span]) / np.diff(edges)[span]
        area = np.zeros(N_MELS + 2)
        area[1:-1] = 2 / (edges[2:] - edges[:-2])
        self._rising = share * area[span + 1]
        self._falling = (1 - share) * area[span]
        # Only spans that hold a bin are summed: at high rates the lowest ones hold none.
        self._spans, self._starts = np.unique(span, return_index=True)

    def __call__(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        """[num_frames, 1025] → [num_frames, 128]."""
        mel = np.zeros((len(power), N_MELS + 2))
        mel[:, self._spans + 1] = np.add.reduceat(power * self._rising, self._starts, axis=1)
        mel[:, self._spans] += np.add.reduceat(power * self._falling, self._starts, axis=1)
        return mel[:, 1:-1]


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear up to 1 kHz (15 mel), logarithmic above."""
    hz: NDArray[np.float64] = np.where(
        mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * (np.log(6.4) / 27))
    )
    return hz


def _hz_to_mel(hz: float) -> float:
    """The inverse of ``_mel_to_hz``."""
    return hz * 3 / 200 if hz < 1000 else 15 + float(np.log(hz / 1000)) * 27 / float(np.log(6.4))


def _dct(n_mfcc: int) -> NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II, [n_mfcc, 128]."""
    order = np.arange(n_mfcc)[:, None]
    basis = np.cos(np.pi / N_MELS * order * (np.arange(N_MELS) + 0.5)) * np.sqrt(2 / N_MELS)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, np.float64)
