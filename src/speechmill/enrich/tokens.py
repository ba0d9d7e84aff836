"""A column of tokens as an addition: the column of one more tokenizer.

Tokens are part of a row's recipe. So rows that get them are of the sink's next recipe, which is
recorded before the first part gets its tokens: from then on a build by the one before undoes
nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.schema import (
    TokenColumn,
    codes_to_array,
    described_tokenizers,
    with_sample_check,
    with_tokenizer,
)
from speechmill.dataset.state import move_recipe
from speechmill.enrich.base import RowState
from speechmill.enrich.staging import Staging, merged_column, notes_of, staged_at
from speechmill.pipeline.intake import ReadyRow
from speechmill.pipeline.tokenize import SampleCheck
from speechmill.recipe import Recipe
from speechmill.storage import Store
from speechmill.tokenizers.base import Tokenizer

__all__ = ["TokenAddition", "staging_id"]


def staging_id(choices: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """What names the tokens of this tokenizer, of audio that was decoded by these choices."""
    shaping = json.dumps([choices.get("audio"), tokenizer], sort_keys=True)
    return hashlib.sha256(shaping.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TokenAddition:
    """One more tokenizer of a dataset: rows of the recipe ``base`` become those of ``target``."""

    tokenizer: Tokenizer
    described: TokenColumn
    column: str
    base: str
    target: Recipe
    staging: Staging
    sample: SampleCheck

    row_columns = ()
    looked_at = ("recipe",)

    @property
    def name(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.name

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The column of tokens."""
        return (pa.field(self.column, self.described.type),)

    def states(self, part: pa.Table) -> list[RowState]:
        """See ``Addition``: told by the rows' recipes."""
        known: dict[str, RowState] = {self.base: "lacking", self.target.id: "there"}
        return [known.get(recipe, "other") for recipe in part["recipe"].to_pylist()]

    def compute(
        self,
        rows: Sequence[ReadyRow],
        columns: Sequence[Mapping[str, Any]],  # noqa: ARG002 - see Addition
    ) -> list[tuple[Any, ...]]:
        """Encode rows; and one of them again, alone, the first time."""
        rate = self.tokenizer.sample_rate
        encoded = self.tokenizer.encode([row.samples(rate) for row in rows])
        for row, codes in zip(rows, encoded, strict=True):
            row.codes[0] = codes
        self.sample.check(rows)
        return [(codes,) for codes in encoded]

    def arrays(self, values: Sequence[tuple[Any, ...]]) -> list[pa.Array]:
        """Codes as the column's array."""
        return [codes_to_array([codes for (codes,) in values], self.described.type)]

    @property
    def mismatch(self) -> tuple[float, ...]:
        """The share of codes that came out otherwise when a row was encoded alone, by codebook."""
        return self.sample.rates.get(self.tokenizer.name, ())

    def notes(self) -> Mapping[str, Any]:
        """What the check of a sample said."""
        return {"sample_mismatch": list(self.mismatch)}

    def before_merging(self, sink: Store) -> None:
        """Make the recipe with this tokenizer the sink's."""
        move_recipe(sink, self.base, self.target)

    def put_into(self, part: pa.Table, staged: pa.Table | None) -> pa.Table | None:
        """A part with the tokens that were made for it; None where that changes nothing.

        Rows that get tokens are of the new recipe from now on. All else stays as it is, other
        recipes' rows and rows without new tokens among it.
        """
        recipes = part["recipe"].to_pylist()
        at = [
            place if recipe == self.base else None
            for place, recipe in zip(staged_at(part, staged), recipes, strict=True)
        ]
        schema = with_tokenizer(part.schema, self.column, self.described)
        if schema.equals(part.schema) and not any(place is not None for place in at):
            return None
        columns = {name: part[name] for name in part.column_names}
        columns["recipe"] = pa.array(
            [r if i is None else self.target.id for r, i in zip(recipes, at, strict=True)],
            pa.string(),
        )
        columns[self.column] = merged_column(part, staged, self.fields[0], at)
        if staged is not None and not self._is_checked(schema):
            mismatch = notes_of(staged)["sample_mismatch"]
            if mismatch:
                schema = with_sample_check(schema, {self.tokenizer.name: mismatch})
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _is_checked(self, schema: pa.Schema) -> bool:
        """Whether a sample of the column was made anew when it was made."""
        return any(
            one["column"] == self.column and "sample_mismatch" in one
            for one in described_tokenizers(schema)
        )

    def after_merging(self, failures: pa.Table) -> pa.Table | None:
        """Failures with the new recipe for the old one: what could not be decoded for the one
        cannot be decoded for the other."""
        old = pc.equal(failures["recipe"], self.base)
        if not pc.any(old).as_py():
            return None
        at = failures.column_names.index("recipe")
        recipes = pc.if_else(old, self.target.id, failures["recipe"])
        return failures.set_column(at, failures.schema.field("recipe"), recipes)
