"""The reference implementations of the codecs, called clip by clip as their documentation does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.tokenizers.snac import from_levels

__all__ = ["REFERENCES", "Reference", "load_reference", "load_snac"]

Reference = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Float32 [num_samples] → codes [num_codebooks, num_frames]."""


def load_snac(folder: Path) -> Any:
    """SNAC as its package has it, with its weights from safetensors."""
    from safetensors.torch import load_file
    from snac import SNAC

    model = SNAC.from_config(folder / "config.json")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def load_reference(name: str, folder: Path, **options: Any) -> Reference:
    """The codec ``name`` of ``codec_checkpoints.CODECS``; ``options`` are those of its encode."""
    import torch

    if name == "snac":
        model = load_snac(folder)
    else:
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModel.from_pretrained(folder).eval()
    encode = REFERENCES[name]

    def codes(waveform: NDArray[np.float32]) -> NDArray[np.int64]:
        with torch.inference_mode():
            found = encode(model, torch.tensor(waveform)[None, None], options)
        return np.asarray(found.numpy() if hasattr(found, "numpy") else found, np.int64)

    return codes


def _whole_frames(model: Any, samples: Any, options: Mapping[str, Any]) -> Any:
    """DAC and X-Codec, behind the feature extractor that their checkpoints name."""
    from transformers import DacFeatureExtractor

    rate = getattr(model.config, "sampling_rate", None) or model.config.sample_rate
    extractor = DacFeatureExtractor(sampling_rate=rate, hop_length=int(model.config.hop_length))
    inputs = extractor(raw_audio=samples[0, 0].numpy(), sampling_rate=rate, return_tensors="pt")
    return model.encode(inputs["input_values"], **options).audio_codes[0]


def _stereo(model: Any, samples: Any, options: Mapping[str, Any]) -> Any:
    """EnCodec at 48 kHz: the codes of all chunks one after the other.

    ``EncodecModel.encode`` cannot stack chunks of which the last but one is shorter than the first;
    it happens where the last one is a frame. Then each chunk is encoded by itself.
    """
    import torch

    samples, stride = samples.expand(-1, 2, -1), model.config.chunk_stride
    chunks = []
    for start in range(0, samples.shape[-1], stride):
        chunk = samples[..., start : start + model.config.chunk_length]
        chunks.append(model._encode_frame(chunk, **options)[0][0])
    try:
        encoded = model.encode(samples, **options)
    except RuntimeError:
        return torch.cat(chunks, dim=-1)
    *firsts, last = encoded.audio_codes[:, 0]
    last = last[:, : last.shape[1] - (encoded.last_frame_pad_length or 0)]
    joined = torch.cat([*firsts, last], dim=-1)
    assert torch.equal(joined, torch.cat(chunks, dim=-1))
    return joined


def _encodec(model: Any, samples: Any, options: Mapping[str, Any]) -> Any:
    return model.encode(samples, **options).audio_codes[0, 0]


def _mimi(model: Any, samples: Any, options: Mapping[str, Any]) -> Any:
    return model.encode(samples, **options).audio_codes[0]


def _snac(model: Any, samples: Any, options: Mapping[str, Any]) -> Any:
    levels = [level[0].numpy() for level in model.encode(samples)]
    per_frame = [model.vq_strides[0] // stride for stride in model.vq_strides]
    hop = int(model.hop_length) * model.vq_strides[0]
    return from_levels(levels, per_frame)[:, : -(-samples.shape[-1] // hop)]


REFERENCES: Mapping[str, Callable[[Any, Any, Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "encodec": lambda model, samples, options: model.encode(samples, **options).audio_codes[
            0, 0
        ],
        "encodec48": _stereo,
        "dac": _whole_frames,
        "mimi": _mimi,
        "xcodec": _whole_frames,
        "snac": _snac,
    }
)
"""Name → (model, samples [1, 1, num_samples], options of encode) → codes."""
