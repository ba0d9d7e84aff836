"""MFCC as in the column of the tokenizer ``mfcc``, and the log-mel energies that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.tokenizers.features.base import Each, FeatureOptions, as_they_are
from speechmill.tokenizers.mfcc import MfccTokenizer

__all__ = ["SpectralFeatures"]


class SpectralFeatures:
    """``mfcc``: [1 + num_samples // 512, n_mfcc]. ``logmel``: the 128 mel bands in decibels.

    Raises:
        JobError: n_mfcc is out of range.
    """

    def __init__(self, options: FeatureOptions) -> None:
        self.options = options
        self._is_mfcc = options.kind == "mfcc"
        self._mfcc = MfccTokenizer(n_mfcc=options.n_mfcc)
        self.sample_rate, self.hop_length = self._mfcc.sample_rate, self._mfcc.hop_length

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the values."""
        made_by = dict(self._mfcc.recipe)
        if not self._is_mfcc:
            del made_by["n_mfcc"]
        return {"features": self.options.kind, **made_by}

    def frames(
        self, waveforms: Sequence[NDArray[np.float32]], each: Each = as_they_are
    ) -> list[NDArray[Any]]:
        """[1 + num_samples // 512, n_mfcc or 128] a waveform, in order; see ``Features``."""
        if self._is_mfcc:
            encoded = self._mfcc.encode(waveforms)
            return [each(codes.values.T.astype(np.float32)) for codes in encoded]
        return [each(self._mfcc.log_mel(waveform)) for waveform in waveforms]
