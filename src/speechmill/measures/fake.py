"""A measure without a model: for tests, and for dry runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from speechmill.measures.base import Needs, RowToMeasure, Values

__all__ = ["FakeMeasure"]


class FakeMeasure:
    """A number drawn from a hash of the samples, and how many characters the row's text has."""

    name = "fake"
    version = 1
    fields = (pa.field("fake_score", pa.float32()), pa.field("fake_characters", pa.int32()))
    needs = Needs(sample_rate=16_000, columns=("transcription",))
    recipe: Mapping[str, object] = {}
    source = "a hash of the samples; no measure"

    def measure(self, rows: Sequence[RowToMeasure]) -> list[Values]:
        """Draw a number from 0 to 1, float32, for each row; count its characters."""
        return [(_drawn(row), len(row.columns["transcription"] or "")) for row in rows]


def _drawn(row: RowToMeasure) -> np.float32:
    samples = row.waveform.samples if row.waveform else np.empty(0, np.float32)
    digest = hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=2).digest()
    return np.float32(int.from_bytes(digest, "big") / 65_535)
