"""The tokenizer that made a column, opened again from what the dataset says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa

from speechmill.dataset.reader import stored_schema
from speechmill.dataset.schema import described_tokenizers
from speechmill.errors import DatasetError, JobError, ModelError
from speechmill.recipe import Recipe
from speechmill.storage import Store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Tokenizer

__all__ = ["column_of", "described_column", "open_again"]

SHOWN = 6  # differences that an error names


def described_column(
    schema: pa.Schema,
    column: str | None,
    where: str,
    suits: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> dict[str, Any]:
    """What the metadata of a schema, of a part or of its rows, tells of one of its token columns.

    ``column`` is its name; None for the only one, or the only one that ``suits`` what is to be
    done. ``where`` says in errors whose schema it is.

    Raises:
        DatasetError: there are no tokens.
        JobError: there is no such column, or there are several and none is named.
    """
    described = [one for one in described_tokenizers(schema) if one["column"] in schema.names]
    if not described:
        raise DatasetError(
            f"{where} has no tokens whose tokenizer it knows (the metadata of its schema says so, "
            "under 'speechmill'); speechmill tokens add makes some"
        )
    by_name = {one["column"]: one for one in described}
    if column is not None:
        if column not in by_name:
            raise JobError(f"{where} has no tokens {column!r}; there are: {', '.join(by_name)}")
        return by_name[column]
    suited = [one for one in described if suits(one)] or described
    if len(suited) > 1:
        either = " or ".join(one["column"] for one in suited)
        raise JobError(f"{where} has several columns of tokens; choose a column: {either}")
    return suited[0]


def open_again(
    described: Mapping[str, Any],
    *,
    model: str | None = None,
    device: str = "auto",
    to_decode: bool = False,
) -> Tokenizer:
    """Open the tokenizer that made a column.

    Args:
        described: what the metadata tells of it.
        model: where its weights are, if not where they were.
        device: auto, cpu, cuda or cuda:1.
        to_decode: another version of our own code will do, which shapes codes only.

    Raises:
        JobError: there is no such tokenizer, or it takes no such model.
        ModelError: its weights cannot be found, or are not those that made the column.
    """
    name, column = described["name"], described["column"]
    spec = described.get("spec", name) if model is None else f"{name}:{model}"
    try:
        tokenizer = open_tokenizer(spec, described.get("options", {}), device=device)
    except ModelError as error:
        raise ModelError(
            f"the weights that made {column!r} are not to be had: {error}. --model says where "
            "they are"
        ) from error
    left_out = {"version"} if to_decode else set()
    made, now = (_shaping(r, left_out) for r in (described["recipe"], tokenizer.recipe))
    if differences := made.differences(now):
        more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise ModelError(
            f"{spec} is not what made {column!r} (the dataset → this): "
            f"{'; '.join(differences[:SHOWN])}{more}. --model says where the same weights are"
        )
    return tokenizer


def column_of(
    store: Store, column: str | None, suits: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> tuple[pa.Schema, dict[str, Any]]:
    """The columns of a sink, and what they tell of one of its token columns.

    Raises:
        DatasetError: there are no rows, or no tokens.
        JobError: see ``described_column``.
    """
    schema = stored_schema(store)
    if schema is None:
        raise DatasetError(f"there are no rows in {store.url}")
    return schema, described_column(schema, column, store.url, suits)


def _shaping(recipe: Mapping[str, object], left_out: Collection[str]) -> Recipe:
    """A tokenizer's choices as JSON has them."""
    choices = json.loads(json.dumps(dict(recipe)))
    return Recipe({name: value for name, value in choices.items() if name not in left_out})
