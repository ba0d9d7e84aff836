"""X-Codec (Ye et al., 2024), as transformers' ``XcodecModel``: 16 kHz, 50 frames a second."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from speechmill.tokenizers.codec import TransformersCodec, fold_weight_norm
from speechmill.tokenizers.exact.pointwise import as_on_threads

__all__ = ["XcodecTokenizer"]


class XcodecTokenizer(TransformersCodec):
    """X-Codec's codes, equal to ``XcodecModel.encode`` of the clip alone, with zeros to a whole
    frame.

    The zeros are those of the feature extractor that its checkpoints name, ``DacFeatureExtractor``.

    Args:
        model: a hub id, a short name for one (librispeech, general, …), or a folder with
            config.json and model.safetensors.
        bandwidth: kilobits a second, one of the model's: 0.5, 1, 1.5, 2 or 4.
        device: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: the model has no such bandwidth; and what ``NeuralCodec`` raises.
    """

    name = "xcodec"
    max_s = 300.0  # its attention looks at all frames at once
    repositories = MappingProxyType(
        {
            "librispeech": "hf-audio/xcodec-hubert-librispeech",
            "general": "hf-audio/xcodec-hubert-general",
            "general-balanced": "hf-audio/xcodec-hubert-general-balanced",
            "wavlm-mls": "hf-audio/xcodec-wavlm-mls",
            "wavlm-more-data": "hf-audio/xcodec-wavlm-more-data",
        }
    )

    def __init__(
        self, *, model: str = "librispeech", bandwidth: float = 2.0, device: str = "auto"
    ) -> None:
        super().__init__(model, device)
        config = self._config
        self._bandwidth = self._choose_bandwidth(bandwidth, config.target_bandwidths)
        self.sample_rate = int(config.sample_rate)
        self.hop_length = int(config.hop_length)
        self.codebook_size = int(config.codebook_size)
        quantizer = self._model.quantizer
        self.num_codebooks = int(quantizer.get_num_quantizers_for_bandwidth(self._bandwidth))
        fold_weight_norm(self._model)
        as_on_threads(self._model)

    def _codes(self, waveforms: Any) -> Any:
        import torch

        zeros = -waveforms.shape[-1] % self.hop_length
        padded = torch.nn.functional.pad(waveforms, (0, zeros))
        return self._model.encode(padded, bandwidth=self._bandwidth).audio_codes

    def _waveform(self, codes: Any) -> Any:
        return self._model.decode(codes).audio_values
