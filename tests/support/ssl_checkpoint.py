"""Small checkpoints of HuBERT, WavLM and wav2vec 2.0, with weights drawn from a fixed seed."""

from __future__ import annotations

from pathlib import Path

SEED = 1
HOP_LENGTH = 320
WINDOW = 10 + 5 * (8 - 1) + 40 * (8 - 1)
"""What one frame sees, in samples."""


def write_ssl_checkpoint(model_type: str, folder: Path, *, stable: bool = False) -> Path:
    """Three layers of width 32, 320 samples a frame. ``stable``: as the large ones are made, whose
    last layer is followed by a normalisation."""
    import torch
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    config = AutoConfig.for_model(
        model_type,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 8, 8),
        conv_stride=(5, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        model = AutoModel.from_config(config).eval()
        for parameter in model.parameters():  # far enough from 0 that layers differ
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=stable).save_pretrained(folder)
    return folder
