"""The additions of a command, by what it names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from speechmill.dataset.schema import token_column
from speechmill.enrich.measures import MeasureAddition
from speechmill.enrich.staging import Staging
from speechmill.enrich.tokens import TokenAddition, staging_id
from speechmill.errors import DatasetError, JobError
from speechmill.measures import open_measures
from speechmill.pipeline.tokenize import SampleCheck
from speechmill.recipe import Recipe
from speechmill.storage import Store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Codec
from speechmill.tokenizers.columns import column_of

__all__ = ["open_measure_additions", "open_token_addition", "refuse_another"]


def open_measure_additions(
    sink: Store, recipe: Recipe, names: Sequence[str]
) -> tuple[MeasureAddition, ...]:
    """The additions of measures to a sink whose rows are made by ``recipe``.

    Raises:
        JobError, MissingExtraError, ModelError: see ``open_measures``.
    """
    return tuple(MeasureAddition(one, sink, recipe) for one in open_measures(names))


def open_token_addition(
    sink: Store, recipe: Recipe, spec: str, options: Mapping[str, Any], device: str
) -> TokenAddition:
    """The addition of a tokenizer, NAME or NAME:MODEL, to a sink whose rows are made by ``recipe``.

    Raises:
        DatasetError: the sink has other tokens of this name.
        JobError: there is no such tokenizer or option, or its codes would have to be judged.
        ModelError: its weights cannot be found.
    """
    tokenizer = open_tokenizer(spec, options, device=device)
    there: Mapping[str, Any] = recipe.choices.get("tokenizers", {})
    mine = json.loads(json.dumps({"name": tokenizer.name, **tokenizer.recipe}))
    column = next((c for c, made in there.items() if made["name"] == tokenizer.name), None)
    if column is None:
        if "round_trip" in recipe.choices and isinstance(tokenizer, Codec):
            raise JobError(
                f"{sink.url} holds round_trip_cer, for which decoded codes have to be transcribed: "
                f"speechmill build --rebuild with --tokenizer {spec} added makes both"
            )
        column = token_column(len(there), tokenizer.name)
        base, target = recipe, _with_tokenizers(recipe, {**there, column: mine})
    else:  # done already, or begun
        if there[column] != mine:
            differences = "; ".join(Recipe(there[column]).differences(Recipe(mine)))
            raise DatasetError(
                f"{sink.url} has tokens of {tokenizer.name!r} already, in {column!r}, made in "
                f"another way (sink → this): {differences}. Use another sink, or speechmill build "
                "--rebuild"
            )
        without = {c: made for c, made in there.items() if c != column}
        base, target = _with_tokenizers(recipe, without), recipe
    return TokenAddition(
        tokenizer,
        column_of(tokenizer, spec, options),
        column,
        base.id,
        target,
        Staging(sink, staging_id(recipe.choices, mine)),
        SampleCheck([tokenizer]),
    )


def _with_tokenizers(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Recipe:
    return replace(recipe, choices={**recipe.choices, "tokenizers": dict(tokenizers)})


def refuse_another(sink: Store, recipe: Recipe, column: str) -> None:
    """Raise an error if another tokenizer of the recipe is still on its way into the parts."""
    for other, made in recipe.choices.get("tokenizers", {}).items():
        if other != column and Staging(sink, staging_id(recipe.choices, made)).keys():
            raise DatasetError(
                f"the tokens of {made['name']!r} have not come into all rows of {sink.url} yet: "
                f"let speechmill tokens add {sink.url} --tokenizer {made['name']} come to its end "
                "first"
            )
