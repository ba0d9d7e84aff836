"""Mimi (Défossez et al., 2024), as transformers' ``MimiModel``: 24 kHz, 12.5 frames a second."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from speechmill.errors import JobError
from speechmill.tokenizers.codec import TransformersCodec
from speechmill.tokenizers.exact.pointwise import as_on_threads

__all__ = ["MimiTokenizer"]


class MimiTokenizer(TransformersCodec):
    """Mimi's codes, equal to ``MimiModel.encode`` of the clip alone: the first codebook is the
    semantic one.

    Args:
        model: a hub id, a short name for one, or a folder with config.json and model.safetensors.
        num_codebooks: how many of the model's codebooks to keep, the first ones; 0 is all. Moshi
            uses 8.
        device: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: the model has fewer codebooks, or more semantic ones; and what
            ``NeuralCodec`` raises.
    """

    name = "mimi"
    max_s = 600.0  # its attention has a mask of all frames by all frames
    repositories = MappingProxyType({"mimi": "kyutai/mimi"})

    def __init__(
        self, *, model: str = "mimi", num_codebooks: int = 0, device: str = "auto"
    ) -> None:
        super().__init__(model, device)
        config = self._config
        self.sample_rate = int(config.sampling_rate)
        self.hop_length = round(config.sampling_rate / config.frame_rate)
        self.codebook_size = int(config.codebook_size)
        self.num_codebooks = self._choose_codebooks(num_codebooks, config.num_quantizers)
        if self.num_codebooks < config.num_semantic_quantizers:
            raise JobError(
                f"mimi: num_codebooks must be at least {config.num_semantic_quantizers}, "
                f"not {num_codebooks}"
            )
        self._fill_codebooks()
        as_on_threads(self._model)

    def _fill_codebooks(self) -> None:
        """Divide the codebooks' sums now: transformers does at the first call, not thread-safely,
        and its result cannot be used outside of inference mode."""
        quantizer = self._model.quantizer
        for part in (
            quantizer.semantic_residual_vector_quantizer,
            quantizer.acoustic_residual_vector_quantizer,
        ):
            for layer in part.layers:
                _ = layer.codebook.embed

    def _codes(self, waveforms: Any) -> Any:
        return self._model.encode(waveforms, num_quantizers=self.num_codebooks).audio_codes

    def _waveform(self, codes: Any) -> Any:
        return self._model.decode(codes).audio_values
