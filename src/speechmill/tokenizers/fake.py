"""A tokenizer without a model: for tests, and for dry runs of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Codes

__all__ = ["FakeTokenizer"]


class FakeTokenizer:
    """Codes computed from the samples alone: shaped like a codec's, and of no use to a model.

    Each frame's code is its 16-bit samples' sum, shifted by the codebook, modulo 1,024.
    """

    name = "fake"
    sample_rate = 16_000
    hop_length = 320
    frame_rate = 50.0
    num_codebooks = 4
    codebook_size = 1024

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the codes."""
        return {"tokenizer": self.name, "version": 1}

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode each waveform (float32 [num_samples], mono, −1..1, at 16 kHz).

        Returns int16 [4, ceil(num_samples / 320)] a waveform, in order.
        """
        return [Codes(self._codes(waveform)) for waveform in waveforms]

    def decode(self, codes: Sequence[Codes]) -> list[NDArray[np.float32]]:
        """Decode to float32 [decoded_length(num_frames)]: a step as high as the first code."""
        return [
            np.repeat(one.values[0] / np.float32(self.codebook_size), self.hop_length).astype(
                np.float32
            )
            for one in codes
        ]

    def decoded_length(self, num_frames: int) -> int:
        """Number of samples that ``decode`` gives for ``num_frames``."""
        return num_frames * self.hop_length

    def _codes(self, waveform: NDArray[np.float32]) -> NDArray[np.int16]:
        samples = (waveform * 32_767).astype(np.int32)
        sums = np.add.reduceat(samples, np.arange(0, len(samples), self.hop_length), dtype=np.int64)
        offsets = np.arange(self.num_codebooks)[:, None] * 257
        return ((sums + offsets) % self.codebook_size).astype(np.int16)
