"""Codecs with weights drawn from a fixed seed, small or of the real size. They make no sense of
speech, but different codes of different sounds: freshly made ones have all-zero codebooks."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

SEED = 1
CODECS = ("encodec", "encodec48", "dac", "mimi", "xcodec", "snac")
"""The tokenizers, and the stereo model of one of them."""
HOPS = {"encodec": 40, "encodec48": 40, "dac": 30, "mimi": 80, "xcodec": 320, "snac": 120}
"""Samples a frame of the small ones."""


def config_of(name: str, *, small: bool) -> Any:
    """The configuration of the checkpoint that ``name`` means, or of one of the same kind that is
    quick to compute."""
    from transformers import DacConfig, EncodecConfig, HubertConfig, MimiConfig, XcodecConfig

    if name.startswith("encodec"):
        # Frames a second × 6 bits: 1.2 kbit/s and up.
        few: dict[str, Any] = {"upsampling_ratios": [5, 4, 2], "num_filters": 4, "hidden_size": 16}
        few |= {"sampling_rate": 8_000, "codebook_size": 64, "target_bandwidths": [2.4, 6.0]}
        stereo: dict[str, Any] = {
            "audio_channels": 2,
            "normalize": True,
            "chunk_length_s": 1.0,
            "overlap": 0.01,
        }
        stereo |= {"use_causal_conv": False, "norm_type": "time_group_norm"}
        stereo |= {"target_bandwidths": [3.0, 6.0, 12.0, 24.0], "sampling_rate": 48_000}
        chosen = stereo if name == "encodec48" else {}
        return EncodecConfig(**(chosen | few if small else chosen))
    if name == "dac":
        few = {"downsampling_ratios": [2, 3, 5], "encoder_hidden_size": 8, "codebook_dim": 4}
        few |= {"decoder_hidden_size": 32, "n_codebooks": 4, "codebook_size": 64}
        few |= {"sampling_rate": 8_000}
        real = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24_000}
        return DacConfig(**(few if small else real))
    if name == "xcodec":
        if not small:
            return XcodecConfig()
        hubert: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        hubert |= {"intermediate_size": 64, "conv_dim": [16] * 7}
        hubert |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        acoustic = {"encoder_hidden_size": 4, "hidden_size": 16, "decoder_hidden_size": 32}
        return XcodecConfig(
            acoustic_model_config=acoustic,
            semantic_model_config=HubertConfig(**hubert),
            codebook_size=64,
            target_bandwidths=[0.6, 2.0],
        )
    few = {"upsampling_ratios": [5, 4, 2], "num_filters": 4, "hidden_size": 32}
    few |= {"codebook_size": 64, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16}
    few |= {"num_quantizers": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    few |= {"num_key_value_heads": 2, "intermediate_size": 64, "upsample_groups": 32}
    few |= {"sampling_rate": 8_000, "sliding_window": 50}
    return MimiConfig(**(few if small else {}))


def snac_config(*, small: bool, attention: int | None = None) -> dict[str, Any]:
    """config.json of SNAC at 24 kHz, or of a small one, with windows of attention or none."""
    few: dict[str, Any] = {"encoder_rates": [2, 3, 5], "decoder_rates": [5, 3, 2], "encoder_dim": 8}
    few |= {"decoder_dim": 64, "codebook_size": 64, "codebook_dim": 4, "sampling_rate": 8_000}
    real: dict[str, Any] = {
        "encoder_rates": [2, 4, 8, 8],
        "decoder_rates": [8, 8, 4, 2],
        "encoder_dim": 48,
    }
    real |= {"decoder_dim": 1024, "codebook_size": 4096, "codebook_dim": 8}
    real |= {"sampling_rate": 24_000}
    return {**(few if small else real), "attn_window_size": attention, "vq_strides": [4, 2, 1]}


def write_codec(name: str, folder: Path, *, small: bool = True) -> Path:
    """A checkpoint of the codec ``name``."""
    import torch
    from transformers import AutoModel

    if name == "snac":
        return write_snac(folder, small=small)
    fill = {"encodec": _fill_encodec, "encodec48": _fill_encodec, "dac": _fill_dac}
    fill |= {"mimi": _fill_mimi, "xcodec": _fill_xcodec}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        model = AutoModel.from_config(config_of(name, small=small)).eval()
        rate = model.config.sample_rate if name == "xcodec" else model.config.sampling_rate
        fill[name](model, _noise(rate, 2 if name == "encodec48" else 1))
    model.save_pretrained(folder)
    return folder


def write_snac(folder: Path, *, small: bool = True, attention: int | None = None) -> Path:
    """A checkpoint of SNAC, as ``snac`` has it but for the format of its weights."""
    import torch
    from safetensors.torch import save_file
    from snac import SNAC

    config = snac_config(small=small, attention=attention)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        model = SNAC(**config).eval()
        residual = model.encoder(model.preprocess(_noise(config["sampling_rate"], 1)))
        for layer in model.quantizer.quantizers:
            pooled = torch.nn.functional.avg_pool1d(residual, layer.stride, layer.stride)
            latents = layer.in_proj(pooled)[0].T
            layer.codebook.weight.copy_(_sample(latents, layer.codebook.weight))
            residual = residual - layer(residual)[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def _noise(rate: int, channels: int) -> Any:
    """20 s of noise that is loud and soft in turn, [1, channels, num_samples]; all channels are the
    same."""
    import torch

    loudness = torch.rand(1, 1, 200).repeat_interleave(rate // 10, 2)
    return (torch.randn(1, 1, 20 * rate) * loudness).expand(-1, channels, -1)


def _sample(latents: Any, like: Any) -> Any:
    """Codes in the midst of the latents [N, D]: some of them, each a little off."""
    import torch

    chosen = latents[torch.randint(len(latents), (len(like),))]
    return chosen + torch.randn_like(chosen) * latents.std(0) / 4


def _fill_encodec(model: Any, noise: Any) -> None:
    import torch

    length = model.config.chunk_length or noise.shape[-1]
    chunks = noise.split(length, dim=-1)
    if model.config.normalize:
        chunks = [chunk / chunk.pow(2).mean().sqrt() for chunk in chunks]
    _fill(model.quantizer.layers, torch.cat([model.encoder(c)[0].T for c in chunks]))


def _fill_xcodec(model: Any, noise: Any) -> None:
    import torch

    semantic = model.encoder_semantic(model._extract_semantic_features(noise).transpose(1, 2))
    joined = torch.cat([model.acoustic_encoder(noise), semantic], dim=1)[0].T
    _fill(model.quantizer.quantizers, model.fc(joined))


def _fill(layers: Any, residual: Any) -> None:
    for layer in layers:
        layer.codebook.embed.copy_(_sample(residual, layer.codebook.embed))
        residual = residual - layer.codebook.embed[layer.codebook.quantize(residual)]


def _fill_dac(model: Any, noise: Any) -> None:
    residual = model.encoder(noise)
    for layer in model.quantizer.quantizers:
        latents = layer.in_proj(residual)[0].T
        layer.codebook.weight.copy_(_sample(latents, layer.codebook.weight))
        residual = residual - layer(residual)[0]


def _fill_mimi(model: Any, noise: Any) -> None:
    latents = model.encoder(noise).latents
    quantizer = model.quantizer
    for part in (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    ):
        projected = latents if part.input_proj is None else part.input_proj(latents)
        residual = projected[0].T
        for layer in part.layers:
            layer.codebook.embed_sum.copy_(_sample(residual, layer.codebook.embed_sum))
            layer.codebook._embed = None
            residual = residual - layer.codebook.embed[layer.codebook.quantize(residual)]


@cache
def small_codec(name: str) -> Path:
    """A small checkpoint of the codec ``name``, written once a process."""
    folder = Path(tempfile.mkdtemp(prefix=f"speechmill-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_codec(name, folder)
