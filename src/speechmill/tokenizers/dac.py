"""The Descript Audio Codec (Kumar et al., 2023), as transformers' ``DacModel``."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Final

from speechmill.tokenizers.codec import WINDOW_S, TransformersCodec, in_windows
from speechmill.tokenizers.exact.pointwise import as_on_threads

__all__ = ["DacTokenizer"]

CONTEXT: Final = 32
"""Frames on either side that a code may depend on. Its convolutions see eight, the rest is
margin."""


class DacTokenizer(TransformersCodec):
    """DAC's codes, equal to ``DacModel.encode`` of the clip alone, with zeros to a whole frame.

    The zeros are those of transformers' ``DacFeatureExtractor``.

    Args:
        model: a hub id, a short name for one (16khz, 24khz, 44khz), or a folder with config.json
            and model.safetensors.
        num_codebooks: how many of the model's codebooks to keep, the first ones; 0 is all.
        device: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: the model has fewer codebooks; and what ``NeuralCodec`` raises.
    """

    name = "dac"
    repositories = MappingProxyType(
        {f"{rate}khz": f"descript/dac_{rate}khz" for rate in (16, 24, 44)}
    )

    def __init__(
        self, *, model: str = "24khz", num_codebooks: int = 0, device: str = "auto"
    ) -> None:
        super().__init__(model, device)
        self.sample_rate = int(self._config.sampling_rate)
        self.hop_length = math.prod(self._config.downsampling_ratios)
        self.codebook_size = int(self._config.codebook_size)
        self.num_codebooks = self._choose_codebooks(num_codebooks, self._config.n_codebooks)
        as_on_threads(self._model)

    def decoded_length(self, num_frames: int) -> int:
        """Number of samples that ``decode`` gives: slightly less than whole frames where a ratio
        is odd."""
        length = num_frames
        for stride in self._config.upsampling_ratios:
            length = length * stride - stride % 2
        return max(length, 0)

    def _codes(self, waveforms: Any) -> Any:
        import torch

        zeros = -waveforms.shape[-1] % self.hop_length
        padded = torch.nn.functional.pad(waveforms, (0, zeros))
        return in_windows(
            lambda samples: (
                self._model.encode(samples, n_quantizers=self.num_codebooks).audio_codes
            ),
            padded,
            self.hop_length,
            round(WINDOW_S * self.frame_rate),
            CONTEXT,
        )

    def _waveform(self, codes: Any) -> Any:
        return self._model.decode(audio_codes=codes).audio_values
