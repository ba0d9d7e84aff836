"""SNAC (Siuzdak et al., 2024), by its authors' package ``snac``: codebooks of different rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.models.checkpoints import cannot_load, read_json, weight_files
from speechmill.tokenizers.codec import WINDOW_S, NeuralCodec, fold_weight_norm, in_windows
from speechmill.tokenizers.exact.pointwise import as_on_threads

__all__ = ["SnacTokenizer", "from_levels", "to_levels"]

CONTEXT: Final = 32
"""Latent frames on either side that a code may depend on. Its convolutions see eight; the rest is
margin."""


class SnacTokenizer(NeuralCodec):
    """SNAC's codes, equal to ``snac.SNAC.encode`` of the clip alone.

    A frame is one of the coarsest codebook. In that time a finer one gives 2, 4 or 8 codes, each of
    which is a row: 1 + 2 + 4 = 7 rows at 24 kHz. ``to_levels`` takes them apart again.

    Args:
        model: a folder with config.json and model.safetensors, a hub id, or a short name for one
            (24khz, 32khz, 44khz).
        device: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: what ``NeuralCodec`` raises; also for the pickle in the authors' repositories,
            which has to be converted once.
    """

    name = "snac"
    libraries = ("safetensors", "snac")
    repositories = MappingProxyType(
        {f"{rate}khz": f"hubertsiuzdak/snac_{rate}khz" for rate in (24, 32, 44)}
    )

    def __init__(self, *, model: str = "24khz", device: str = "auto") -> None:
        try:
            super().__init__(model, device)
        except JobError as error:
            if "a pickle" not in str(error):
                raise
            raise JobError(
                f"snac: the weights of {model!r} are a pickle, which may run code when it is "
                "opened: only safetensors are read. If you trust it, convert it once, and give the "
                "new folder: docs/tokens.md says how, under snac"
            ) from None
        snac = self._model
        strides = [int(stride) for stride in snac.vq_strides]
        if any(strides[0] % stride for stride in strides):
            raise JobError(f"snac: the rates of the codebooks of {model!r} do not divide the first")
        self.codes_per_frame = tuple(strides[0] // stride for stride in strides)
        self.num_codebooks = sum(self.codes_per_frame)
        self.sample_rate = int(snac.sampling_rate)
        self.codebook_size = int(snac.codebook_size)
        self.hop_length = int(snac.hop_length) * strides[0]
        # SNAC computes whole frames and whole windows of attention: so many frames at a time.
        self._whole = math.lcm(strides[0], int(snac.attn_window_size or 1)) // strides[0]
        fold_weight_norm(snac)
        as_on_threads(snac)
        _repeat_noise(snac)
        self._silence = self._codes_of_silence()

    def _load(self) -> Any:
        """The model, without the package's own loader: that one opens a pickle."""
        from safetensors.torch import load_file
        from snac import SNAC

        config = read_json(self._weights.folder / "config.json")
        if not {"sampling_rate", "vq_strides"} <= set(config):
            raise JobError(f"snac: {self._weights.name!r} is a checkpoint of something else")
        weights: dict[str, Any] = {}
        try:
            model = SNAC(**config)
            for path in weight_files(self._weights.folder, self._weights.name):
                weights |= load_file(path)
            model.load_state_dict(weights)
        # What SNAC, PyTorch and safetensors raise for a damaged file is not of one class.
        except Exception as error:
            raise cannot_load(self._weights, error) from error
        return model.eval()

    def _codes(self, waveforms: Any) -> Any:
        together = self.hop_length * self._whole
        return in_windows(
            self._rows,
            self._model.preprocess(waveforms),
            self.hop_length,
            self._whole * round(WINDOW_S * self.sample_rate / together),
            self._whole * -(-CONTEXT // (self.codes_per_frame[-1] * self._whole)),
        )

    def _rows(self, samples: Any) -> Any:
        """Tensor [N, 1, num_samples] → [N, num_codebooks, num_frames]."""
        import torch

        levels = self._model.encode(samples)
        return torch.cat(
            [
                level.unflatten(1, (-1, count)).mT
                for level, count in zip(levels, self.codes_per_frame, strict=True)
            ],
            dim=1,
        )

    def _waveform(self, codes: Any) -> Any:
        import torch

        num_frames = codes.shape[-1]
        silence = self._silence[None, :, None].expand(-1, -1, -num_frames % self._whole)
        rows = torch.cat([codes, silence], dim=-1).split(self.codes_per_frame, dim=1)
        waveform = self._model.decode([level.mT.flatten(1) for level in rows])
        return waveform[..., : num_frames * self.hop_length]

    def _codes_of_silence(self) -> Any:
        """Tensor [num_codebooks]: what follows the last frame, to fill a window of attention."""
        import torch

        with torch.inference_mode():
            zeros = torch.zeros(1, 1, self.hop_length * self._whole, device=self._device)
            return self._rows(zeros)[0, :, -1]


def to_levels(
    values: NDArray[Any], codes_per_frame: Sequence[int] = (1, 2, 4)
) -> list[NDArray[Any]]:
    """SNAC's codebooks, each with its own rate, from what is stored of them.

    Args:
        values: [sum(codes_per_frame), num_frames].
        codes_per_frame: codes that each codebook gives in a frame: (1, 2, 4) at 24 kHz, and
            (1, 2, 4, 8) at 32 and 44 kHz.

    Returns:
        A codebook each: [num_frames · codes_per_frame[i]], in the order of time.

    Raises:
        ValueError: so many rows do not fit.
    """
    if len(values) != sum(codes_per_frame):
        raise ValueError(f"{len(values)} rows are not {' + '.join(map(str, codes_per_frame))}")
    rows = np.split(values, np.cumsum(codes_per_frame)[:-1])
    return [level.T.reshape(-1) for level in rows]


def from_levels(
    levels: Sequence[NDArray[Any]], codes_per_frame: Sequence[int] = (1, 2, 4)
) -> NDArray[Any]:
    """The inverse of ``to_levels``: codebooks → [sum(codes_per_frame), num_frames]."""
    return np.concatenate(
        [level.reshape(-1, count).T for level, count in zip(levels, codes_per_frame, strict=True)]
    )


def _repeat_noise(model: Any) -> None:
    """Make the decoder's noise the same at each call, for each clip, in each thread."""
    from snac.layers import NoiseBlock

    blocks = [module for module in model.modules() if isinstance(module, NoiseBlock)]
    for seed, block in enumerate(blocks):
        block.forward = _SameNoise(block.linear, seed)


class _SameNoise:
    """SNAC's ``NoiseBlock`` with random numbers of its own, instead of the process's."""

    def __init__(self, linear: Any, seed: int) -> None:
        self._linear = linear
        self._seed = seed

    def __call__(self, hidden: Any) -> Any:
        import torch

        generator = torch.Generator().manual_seed(self._seed)
        noise = torch.randn((1, 1, hidden.shape[-1]), generator=generator).to(hidden)
        return hidden + noise * self._linear(hidden)
