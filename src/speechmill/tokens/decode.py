"""Codes back into sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.state import sink_state
from speechmill.errors import JobError
from speechmill.records import Codes, Waveform
from speechmill.storage import StoreOptions, open_store
from speechmill.tokenizers import TOKENIZERS
from speechmill.tokenizers.base import Codec
from speechmill.tokens.column import column_of, described_column, open_again

__all__ = ["can_decode", "codec_of", "decode_tokens", "open_codec", "trimmed"]


def decode_tokens(
    row: pa.Table | pa.RecordBatch | Mapping[str, Any],
    *,
    column: str | None = None,
    codec: Codec | None = None,
    model: str | None = None,
    device: str = "auto",
) -> Waveform:
    """Turn the codes of one row back into sound.

    ::

        rows = speechmill.open_dataset("s3://voices/out").to_table()
        waveform = speechmill.decode_tokens(rows.slice(0, 1))
        waveform.samples, waveform.sample_rate

    Args:
        row: a table or batch with one row: its metadata says what made its codes. Or the row as a
            dict, as ``to_pylist`` gives it; then ``codec`` is needed.
        column: which tokens, where there are several.
        codec: what made the codes; ``open_codec`` opens it.
        model: where the weights are, if not where they were.
        device: auto, cpu, cuda or cuda:1.

    Returns:
        float32 [num_samples], mono, at the codec's rate; as long as ``duration_s`` says where the
        row has it.

    Raises:
        JobError: it is not one row, has no such tokens, or they cannot be turned back into sound.
        ModelError: the weights cannot be found, or are not those that made the codes.
    """
    if isinstance(row, Mapping):
        if codec is None:
            raise JobError(
                "a dict does not say what made its tokens: pass codec=speechmill.open_codec(SINK), "
                "or a row as a table, such as table.slice(0, 1)"
            )
        names = [column] if column else [f"token_{codec.name}", "token"]
        values = next((row[name] for name in names if row.get(name) is not None), None)
        duration_s = row.get("duration_s")
        codes = None if values is None else np.array([np.asarray(v) for v in values])
    else:
        if row.num_rows != 1:
            raise JobError(f"one row is decoded, not {row.num_rows}: take table.slice(i, 1)")
        described = described_column(row.schema, column, "the row", can_decode)
        codec = codec or _kept_codec(json.dumps(described, sort_keys=True), model, device)
        codes = tokens_to_arrays(row.column(described["column"]))[0]
        there = "duration_s" in row.schema.names
        duration_s = row.column("duration_s")[0].as_py() if there else None
    if codes is None:
        raise JobError("the row has no tokens (its recording was gone when they were added)")
    (samples,) = codec.decode([Codes(codes)])
    return Waveform(trimmed(samples, codec.sample_rate, duration_s), codec.sample_rate)


def open_codec(
    sink: str,
    *,
    column: str | None = None,
    model: str | None = None,
    device: str = "auto",
    profile: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
) -> Codec:
    """The codec that made a dataset's codes.

    Raises:
        DatasetError: there is no dataset, or it has no tokens.
        JobError: there are several columns, or these cannot be turned back into sound.
        ModelError: the weights cannot be found, or are not those that made the codes.
    """
    store = open_store(sink, StoreOptions(profile, endpoint_url, region))
    sink_state(store)
    return codec_of(column_of(store, column, can_decode)[1], model, device)


def can_decode(described: Mapping[str, Any]) -> bool:
    """Whether a column's tokens can be turned back into sound, as far as is known without opening
    what made them."""
    name = described["name"]
    return name not in TOKENIZERS or hasattr(TOKENIZERS[name](), "decode")


@lru_cache(maxsize=2)
def _kept_codec(described: str, model: str | None, device: str) -> Codec:
    return codec_of(json.loads(described), model, device)


def codec_of(described: Mapping[str, Any], model: str | None, device: str) -> Codec:
    """The codec that made a column; ``described`` is what the metadata tells of it.

    Raises:
        JobError: it is no codec.
        ModelError: its weights cannot be found, or are not those that made the codes.
    """
    codec = None
    if can_decode(described):
        codec = open_again(described, model=model, device=device, to_decode=True)
    if not isinstance(codec, Codec):
        raise JobError(
            f"the tokens in {described['column']!r} are {described['name']}, which cannot be "
            "turned back into sound; those of codecs can, such as encodec, dac and mimi"
        )
    return codec


def trimmed(
    samples: NDArray[np.float32], sample_rate: int, duration_s: float | None
) -> NDArray[np.float32]:
    """What was decoded, float32 [num_samples], as long as its row: a codec's last frame reaches
    beyond it."""
    return samples if duration_s is None else samples[: max(1, round(duration_s * sample_rate))]
