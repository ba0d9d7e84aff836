"""Whisper in the format that the other backends read, made from the CTranslate2 models that
packages carry: no hub is needed to run them on real weights.

CTranslate2's ``model.bin``, version 6, is little-endian: version, spec name, revision, variables
(name, shape, dtype, bytes), aliases. A string is its length, with the closing zero, and its bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tests.support.weights import whisper

VERSION = 2  # of what is written: raised by hand, so that an old cache is not used
BINARY_VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, NDArray[Any]]:
    """A model's variables by name: weights as float32, int8 ones times their scale."""
    with path.open("rb") as file:
        version, spec, _ = _number(file, "I"), _string(file), _number(file, "I")
        if version != BINARY_VERSION:
            raise ValueError(f"{path}: binary version {version} of {spec}, not {BINARY_VERSION}")
        variables = [_variable(file) for _ in range(_number(file, "I"))]
        aliases = [(_string(file), _string(file)) for _ in range(_number(file, "I"))]
        if file.read(1):
            raise ValueError(f"{path}: more follows where it should end")
    stored = dict(variables)
    stored |= {alias: stored[name] for alias, name in aliases}
    read: dict[str, NDArray[Any]] = {}
    for name, value in stored.items():
        if name.endswith("_scale"):
            continue
        scale = stored.get(f"{name}_scale")
        if value.dtype == np.int8 and scale is not None:
            rows = scale.reshape(scale.shape + (1,) * (value.ndim - scale.ndim))
            read[name] = value.astype(np.float32) / rows
        elif value.ndim and value.dtype == np.float16:
            read[name] = value.astype(np.float32)
        else:
            read[name] = value
    return read


def _number(file: BinaryIO, code: str) -> int:
    return int(struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()


def _variable(file: BinaryIO) -> tuple[str, NDArray[Any]]:
    name, rank = _string(file), _number(file, "B")
    shape = [_number(file, "I") for _ in range(rank)]
    dtype = DTYPES[_number(file, "B")]
    return name, np.frombuffer(file.read(_number(file, "I")), dtype).reshape(shape)


def hugging_face_names(variables: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Whisper's weights under the names that transformers gives them."""
    weights: dict[str, NDArray[np.float32]] = {}
    for name, value in variables.items():
        parts = name.split("/")
        if value.ndim == 0 or parts[-1] not in {"weight", "bias", "gamma", "beta", "encodings"}:
            continue
        leaf = {"gamma": "weight", "beta": "bias"}.get(parts[-1], parts[-1])
        side, inner = parts[0], parts[1:-1]
        if inner[0].startswith("layer_") and inner[0] != "layer_norm":
            prefix = f"model.{side}.layers.{inner[0].removeprefix('layer_')}."
            weights |= _of_layer(prefix, inner[1:], leaf, value)
            continue
        target = {
            "position_encodings": "embed_positions.weight",
            "embeddings": "embed_tokens.weight",
        }.get(inner[0], f"{inner[0]}.{leaf}")
        if inner[0] != "projection":  # it is the embedding
            weights[f"model.{side}.{target}"] = value
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def _of_layer(
    prefix: str, inner: list[str], leaf: str, value: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """One variable of a layer; CTranslate2 keeps projections of one input in one matrix."""
    block, part = inner
    if block == "ffn":
        name = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[part]
        return {f"{prefix}{name}.{leaf}": value}
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
    if part == "layer_norm":
        return {f"{prefix}{attention}_layer_norm.{leaf}": value}
    projections = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, part]
    return {
        f"{prefix}{attention}.{projection}.{leaf}": piece
        for projection, piece in zip(
            projections, np.split(value, len(projections), axis=0), strict=True
        )
        if (projection, leaf) != ("k_proj", "bias")  # Whisper has none: zeros
    }


@cache
def whisper_folder(name: str = "tiny.en") -> Path:
    """The folder of a Whisper in the format of transformers, written at first use."""
    source = whisper(name)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = source.digests["model.bin"][:16]
    target = Path(root) / "speechmill" / "tests" / f"whisper-{name}-{digest}-{VERSION}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as staging:
        whole = Path(staging) / "whole"
        whole.mkdir()
        _write(source.folder, whole)
        try:
            whole.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target


def _write(source: Path, target: Path) -> None:
    from safetensors.numpy import save_file
    from transformers import WhisperConfig, WhisperFeatureExtractor

    variables = read_ctranslate2(source / "model.bin")
    weights = hugging_face_names(variables)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    vocab_size, width = weights["model.decoder.embed_tokens.weight"].shape
    num_mels = weights["model.encoder.conv1.weight"].shape[1]
    num_layers = len({name.split("/")[1] for name in variables if "/self_attention/" in name})
    heads = int(variables["decoder/num_heads"])
    added = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    specials = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=vocab_size,
        d_model=width,
        num_mel_bins=num_mels,
        encoder_layers=num_layers,
        decoder_layers=num_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        **specials,
    ).save_pretrained(target)
    WhisperFeatureExtractor(feature_size=num_mels).save_pretrained(target)
    known = json.loads((source / "config.json").read_text())
    generation = {
        "alignment_heads": known["alignment_heads"],
        "begin_suppress_tokens": known["suppress_ids_begin"],
        "suppress_tokens": known["suppress_ids"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "max_initial_timestamp_index": 50,
        "is_multilingual": vocab_size >= 51_865,
        **specials,
    }
    (target / "generation_config.json").write_text(json.dumps(generation))
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokenizer = {"tokenizer_class": "WhisperTokenizer", "eos_token": "<|endoftext|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer))
