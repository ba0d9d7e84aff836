"""EnCodec (Défossez et al., 2022), as transformers' ``EncodecModel``: at 24 kHz and at 48 kHz."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from speechmill.errors import JobError
from speechmill.tokenizers.codec import TransformersCodec, fold_weight_norm
from speechmill.tokenizers.exact.pointwise import as_on_threads
from speechmill.tokenizers.exact.seanet import StreamedEncoder

__all__ = ["EncodecTokenizer"]

QUIETEST_DB: Final = -120.0
LOUDEST_DB: Final = 6.0
"""The lowest and the highest code of loudness, in dB of full scale."""


class EncodecTokenizer(TransformersCodec):
    """EnCodec's codes, equal to ``EncodecModel.encode`` of the clip alone, without padding.

    The model for 48 kHz is stereo: it gets the mono waveform on both channels, and what it decodes
    is averaged. It takes a second at a time, of which the next one begins 10 ms before its end, and
    divides it by its loudness. The frames of all these chunks stand one after the other; a last row
    says how loud the chunk of each frame is, in ``codebook_size`` steps from −120 to 6 dB.

    Args:
        model: a hub id, a short name for one (24khz, 48khz), or a folder with config.json and
            model.safetensors.
        bandwidth: kilobits a second, one of the model's: 1.5, 3, 6, 12 or 24 at 24 kHz, and 3, 6,
            12 or 24 at 48 kHz.
        device: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: the model has no such bandwidth; and what ``NeuralCodec`` raises.
    """

    name = "encodec"
    repositories = MappingProxyType(
        {f"{rate}khz": f"facebook/encodec_{rate}khz" for rate in (24, 48)}
    )

    def __init__(
        self, *, model: str = "24khz", bandwidth: float = 6.0, device: str = "auto"
    ) -> None:
        super().__init__(model, device)
        config = self._config
        self._bandwidth = self._choose_bandwidth(bandwidth, config.target_bandwidths)
        self.sample_rate = int(config.sampling_rate)
        self.hop_length = int(config.hop_length)
        self.codebook_size = int(config.codebook_size)
        self._chunk = config.chunk_length  # samples; None where a clip is encoded whole
        self._stride = config.chunk_stride
        if bool(config.normalize) != (self._chunk is not None and self._stride is not None):
            raise JobError(
                f"encodec: {model!r} either scales its input or cuts it into chunks; only models "
                "that do both, or neither, can be used"
            )
        quantizer = self._model.quantizer
        self._num_quantizers = int(quantizer.get_num_quantizers_for_bandwidth(self._bandwidth))
        self.num_codebooks = self._num_quantizers + bool(self._chunk)
        fold_weight_norm(self._model)
        as_on_threads(self._model)
        self._encoder = StreamedEncoder(self._model.encoder, self.hop_length, self.sample_rate)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that ``encode`` gives for ``num_samples``."""
        if self._chunk is None:
            return super().num_frames(num_samples)
        return sum(self._chunk_frames(num_samples))

    def decoded_length(self, num_frames: int) -> int:
        """Number of samples that ``decode`` gives for ``num_frames``."""
        if self._chunk is None or not num_frames:
            return super().decoded_length(num_frames)
        frames = self._split(num_frames)
        return int(self._stride * (len(frames) - 1) + frames[-1] * self.hop_length)

    def _codes(self, waveforms: Any) -> Any:
        import torch

        if self._chunk is None:
            latents = self._encoder(waveforms)
            return torch.cat([self._quantized(z) for z in latents], dim=-1)
        channels = self._config.audio_channels
        codes = []
        for start in range(0, waveforms.shape[-1], self._stride):
            chunk = waveforms[..., start : start + self._chunk].expand(-1, channels, -1)
            mono = chunk.sum(1, keepdim=True) / channels
            scale = mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8
            found = self._quantized(self._model.encoder(chunk / scale))
            loudness = self._loudness_code(scale).expand(-1, -1, found.shape[-1])
            codes.append(torch.cat([found, loudness], dim=1))
        return torch.cat(codes, dim=-1)

    def _quantized(self, latents: Any) -> Any:
        """Tensor [N, hidden_size, num_frames] → [N, number of quantizers, num_frames]."""
        return self._model.quantizer.encode(latents, self._bandwidth).transpose(0, 1)

    def _waveform(self, codes: Any) -> Any:
        if self._chunk is None:
            return self._model.decode(codes[None], [None]).audio_values
        frames = self._split(codes.shape[-1])
        chunks = codes.split(frames, dim=-1)
        decoded = [
            self._model.decoder(self._model.quantizer.decode(c[:, :-1].transpose(0, 1)))
            * self._scale(c[:, -1:, :1])
            for c in chunks
        ]
        return self._overlapped(decoded).mean(dim=1)

    def _overlapped(self, chunks: list[Any]) -> Any:
        """Chunks [1, channels, num_samples] one after the other, faded where they overlap."""
        import torch

        length = self._stride * (len(chunks) - 1) + chunks[-1].shape[-1]
        # EnCodec's fade: weights that rise to the middle of a whole chunk, and fall.
        time = torch.linspace(0, 1, self._chunk + 2, device=chunks[0].device)[1:-1]
        weight = 0.5 - (time - 0.5).abs()
        total = torch.zeros(length, device=chunks[0].device)
        sound = torch.zeros(*chunks[0].shape[:-1], length, device=chunks[0].device)
        for i, chunk in enumerate(chunks):
            faded = weight[: chunk.shape[-1]]
            stretch = slice(i * self._stride, i * self._stride + len(faded))
            sound[..., stretch] += chunk[..., : len(faded)] * faded
            total[stretch] += faded
        return sound / total

    def _chunk_frames(self, num_samples: int) -> list[int]:
        """The frames of each chunk."""
        return [
            -(-min(self._chunk, num_samples - start) // self.hop_length)
            for start in range(0, num_samples, self._stride)
        ]

    def _split(self, num_frames: int) -> list[int]:
        """The frames of each chunk, from their sum: it grows with the samples, so it tells.

        Raises:
            JobError: no clip has so many frames.
        """
        low, high = 0, num_frames * self.hop_length
        while low < high:  # the fewest samples that have so many frames
            middle = (low + high) // 2
            if self.num_frames(middle) < num_frames:
                low = middle + 1
            else:
                high = middle
        frames = self._chunk_frames(low)
        if sum(frames) != num_frames:
            raise JobError(f"encodec: no waveform has {num_frames} frames; codes have been cut off")
        return frames

    def _loudness_code(self, scale: Any) -> Any:
        """Scales as codes: how loud, in steps of equal ratio."""
        steps = (self.codebook_size - 1) / (LOUDEST_DB - QUIETEST_DB)
        code = ((20 * scale.log10() - QUIETEST_DB) * steps).round()
        return code.clamp(0, self.codebook_size - 1).long()

    def _scale(self, code: Any) -> Any:
        """The inverse of ``_loudness_code``, within half a step."""
        steps = (self.codebook_size - 1) / (LOUDEST_DB - QUIETEST_DB)
        return 10 ** ((code / steps + QUIETEST_DB) / 20)
