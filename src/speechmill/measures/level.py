"""How loud a row is, and what is wrong with its level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.measures.base import Needs, RowToMeasure, Values

__all__ = ["LevelMeasure"]

SILENT_DBFS: Final = -200.0
"""The level of digital silence, whose logarithm is infinite; 24 bits reach down to −144 dBFS."""

BLOCK: Final = 2**20
"""Samples that are added up at once, so that a row of hours takes no memory of its size."""

CLIPPED: Final = 32_767 / 32_768
"""From here on a sample counts as clipped: the largest value of 16 bits, on either side."""


class LevelMeasure:
    """Peak and RMS in dB below full scale, the share of clipped samples, and the DC offset.

    They are of the row's mono waveform at the recording's own rate, as it was decoded. A full-scale
    square wave has 0 dBFS by both figures, a full-scale sine wave −3.01 dBFS by RMS (AES17 counts
    from the sine: 3.01 dB more). ``dc_offset`` is the mean, −1 to 1. Sums are of float64.
    """

    name = "level"
    version = 1
    fields = (
        pa.field("peak_dbfs", pa.float32()),
        pa.field("rms_dbfs", pa.float32()),
        pa.field("clipped_share", pa.float32()),
        pa.field("dc_offset", pa.float32()),
    )
    needs = Needs()
    recipe: Mapping[str, object] = {}
    source = "peak, RMS (re full-scale square), clipped samples, mean, at the recording's rate"

    def measure(self, rows: Sequence[RowToMeasure]) -> list[Values]:
        """Measure each row's level: four float32."""
        return [_level(row.waveform.samples) for row in rows if row.waveform is not None]


def _level(samples: NDArray[np.float32]) -> Values:
    peak = total = squares = 0.0
    clipped = 0
    for first in range(0, len(samples), BLOCK):
        exact = samples[first : first + BLOCK].astype(np.float64)
        peak = max(peak, float(np.abs(exact).max()))
        clipped += int((np.abs(exact) >= CLIPPED).sum())
        # Sums by numpy's pairwise addition, not by a product of vectors: BLAS adds in another order
        # on another number of threads.
        total += float(exact.sum())
        squares += float(np.square(exact).sum())
    count = len(samples)
    return (
        np.float32(_dbfs(peak)),
        np.float32(_dbfs(math.sqrt(squares / count))),
        np.float32(clipped / count),
        np.float32(total / count),
    )


def _dbfs(amplitude: float) -> float:
    return max(SILENT_DBFS, 20 * float(np.log10(amplitude))) if amplitude > 0 else SILENT_DBFS
