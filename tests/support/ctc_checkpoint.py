"""A small CTC checkpoint with weights drawn from a fixed seed. It hears nonsense, but a different
one in each recording, and nothing in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SEED = 1
LETTERS = "ETAOINSHRDLUMWCFGYPBVK'"
VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
BLANK = VOCABULARY["<pad>"]
LEADS = {"<pad>": 5.0, "|": 3.5}
"""How far the blank, and the space between words, are above all letters in silence, in logits."""


def write_ctc_checkpoint(folder: Path, **changes: Any) -> Path:
    """A Wav2Vec2ForCTC of 0.1 M weights, 320 samples a frame; ``changes`` to its config."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        pad_token_id=BLANK,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 8, 8),
        conv_stride=(5, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        model = Wav2Vec2ForCTC(config).eval()
        model.lm_head.weight.normal_()
        model.lm_head.weight[VOCABULARY["|"]] *= 2  # spaces are frequent
        silence = model(torch.zeros(1, 16_000)).logits[0].mean(0)
        model.lm_head.bias.copy_(model.lm_head.bias - silence)
        for token, lead in LEADS.items():
            model.lm_head.bias[VOCABULARY[token]] += lead
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder
