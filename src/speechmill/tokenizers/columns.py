"""What a dataset is told of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from speechmill.dataset.schema import TokenColumn
from speechmill.tokenizers.base import Codec, Tokenizer

__all__ = ["column_of"]


def column_of(
    tokenizer: Tokenizer, spec: str | None = None, options: Mapping[str, object] | None = None
) -> TokenColumn:
    """Describe the column that a tokenizer makes.

    Args:
        tokenizer: what makes the tokens.
        spec: how it was asked for, NAME or NAME:MODEL, so that it can be opened again.
        options: its options by name, likewise.
    """
    return TokenColumn(
        name=tokenizer.name,
        sample_rate=tokenizer.sample_rate,
        hop_length=tokenizer.hop_length,
        frame_rate=tokenizer.frame_rate,
        num_codebooks=tokenizer.num_codebooks,
        codebook_size=tokenizer.codebook_size,
        recipe=tokenizer.recipe,
        spec=spec,
        options=options or {},
        decodes=isinstance(tokenizer, Codec),
    )
