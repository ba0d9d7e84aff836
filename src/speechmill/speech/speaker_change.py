"""Whether two stretches of speech are of one speaker, by the Bayesian information criterion (Chen
and Gopalakrishnan, 1998).

The cepstra of speech are taken for draws from a normal distribution. Two stretches are of two
speakers if a distribution for each explains them better than one for both, by more than its
parameters cost. Nothing knows who the speakers are: another microphone, room or distance is
another speaker, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_CEPSTRA", "Sums", "cepstra", "change"]

SAMPLE_RATE: Final = 16_000
NUM_CEPSTRA: Final = 13
NUM_BANDS: Final = 24
LOWEST_HZ: Final = 100.0
HIGHEST_HZ: Final = 7000.0
MIN_POWER: Final = 1e-9
BLOCK: Final = 4096
"""Frames that are summed at once in double precision."""
MIN_VARIANCE: Final = 0.01
"""Added to the variance of each cepstrum: of silence and of a pure tone it would be 0."""


def cepstra(frames: NDArray[np.float32]) -> NDArray[np.float16]:
    """Cepstra of 24 mel bands with the level (c0), [num_frames, 13], of frames at 16 kHz,
    [num_frames, size].

    Half precision will do, and hours of speech are kept. There is no matrix product here that BLAS
    would share out among threads, which get in the way of those of the models.
    """
    window, edges, cosines = _tables(frames.shape[1])
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)))
    bands = np.add.reduceat(power, edges, axis=1)[:, :NUM_BANDS]
    logs = np.log(np.maximum(bands, MIN_POWER))
    return np.asarray(np.einsum("fb,cb->fc", logs, cosines), np.float16)


@cache
def _tables(size: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Hann window, [size]; the bins where bands begin, and the last one ends, [25]; the discrete
    cosine transform, [13, 24]."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    hertz = 700 * (10 ** (np.linspace(lowest, highest, NUM_BANDS + 1) / 2595) - 1)
    edges = np.round(hertz * size / SAMPLE_RATE).astype(np.int64)
    angles = np.pi / NUM_BANDS * np.outer(np.arange(NUM_CEPSTRA), np.arange(NUM_BANDS) + 0.5)
    cosines = np.cos(angles) * np.sqrt(2 / NUM_BANDS)
    cosines[0] /= np.sqrt(2)
    return np.hanning(size).astype(np.float32), edges, cosines.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What is to be known of the cepstra of some frames; sums of two are those of all of them."""

    count: int
    total: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: NDArray[np.float16]) -> Sums:
        """Those of cepstra, [num_frames, 13]."""
        total, products = np.zeros(NUM_CEPSTRA), np.zeros((NUM_CEPSTRA, NUM_CEPSTRA))
        for first in range(0, len(vectors), BLOCK):
            exact = vectors[first : first + BLOCK].astype(np.float64)
            total += exact.sum(axis=0)
            products += exact.T @ exact
        return cls(len(vectors), total, products)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    @property
    def surprise(self) -> float:
        """Half the count times the logarithm of the covariance's determinant."""
        if not self.count:
            return 0.0
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        covariance += MIN_VARIANCE * np.eye(len(mean))
        return float(self.count / 2 * np.linalg.slogdet(covariance)[1])


def change(left: Sums, right: Sums) -> float:
    """How much better two distributions explain the frames than one, by what the parameters of the
    second cost: above 1, the criterion holds them for two speakers. 0 where a side has no frame."""
    if not left.count or not right.count:
        return 0.0
    both, size = left + right, len(left.total)
    gain = both.surprise - left.surprise - right.surprise
    parameters = size + size * (size + 1) / 2
    return float(gain / (parameters / 2 * np.log(both.count)))
