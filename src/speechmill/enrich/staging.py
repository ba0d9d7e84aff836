"""A column of tokens for rows that are there already: made beside the data, then put into its
parts.

What is made lies under ``_speechmill/adding/``, an object a part, until all of it is there: a
command that is cut short goes on from it, and readers see nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import ADDING
from speechmill.dataset.schema import (
    METADATA_KEY,
    TokenColumn,
    described_tokenizers,
    to_parquet,
    with_sample_check,
    with_tokenizer,
)
from speechmill.dataset.swap import update
from speechmill.errors import NotFoundError
from speechmill.recipe import Recipe
from speechmill.storage import Store
from speechmill.tokenizers.base import Tokenizer

__all__ = [
    "KEY_COLUMNS",
    "Addition",
    "RowKey",
    "Staging",
    "put_into",
    "row_keys",
    "staged_table",
    "staging_id",
    "with_recipe",
]

RowKey = tuple[str, int, str, float, float]
"""A row: file_name, source_size, source_etag, start_s, end_s."""

KEY_COLUMNS = ("file_name", "source_size", "source_etag", "start_s", "end_s")
_KEY_FIELDS = (pa.string(), pa.int64(), pa.string(), pa.float64(), pa.float64())


@dataclass(frozen=True)
class Addition:
    """One more tokenizer of a dataset: rows of the recipe ``base`` become those of ``target``."""

    tokenizer: Tokenizer
    described: TokenColumn
    column: str
    of_type: pa.DataType
    base: str
    target: Recipe

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns of a part that has it."""
        return with_tokenizer(schema, self.column, self.described)


def row_keys(table: pa.Table) -> list[RowKey]:
    """Which rows these are, by the columns of ``RowKey``."""
    return list(zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True))


def staging_id(choices: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """What names the tokens of this tokenizer, of audio that was decoded by these choices."""
    shaping = json.dumps([choices.get("audio"), tokenizer], sort_keys=True)
    return hashlib.sha256(shaping.encode()).hexdigest()[:16]


class Staging:
    """The tokens of one tokenizer that are not in the parts yet. Thread-safe."""

    def __init__(self, store: Store, staging: str) -> None:
        self._store, self._id = store, staging

    def keys(self) -> list[str]:
        """The objects that there are."""
        try:
            listed = [o.key for o in self._store.list(ADDING)]
        except NotFoundError:
            return []
        return [key for key in listed if key.startswith(f"{ADDING}/{self._id}-")]

    def key(self, part_key: str) -> str:
        """Where those of a part are."""
        digest = hashlib.blake2b(part_key.encode(), digest_size=16).hexdigest()
        return f"{ADDING}/{self._id}-{digest}.parquet"

    def read(self, part_key: str) -> pa.Table | None:
        """What there is for a part."""
        key = self.key(part_key)
        try:
            return read_part(key, self._store.get(key).data)
        except NotFoundError:
            return None

    def add(self, part_key: str, rows: pa.Table) -> None:
        """Add rows (of ``staged_table``); what is there already stays."""
        key = self.key(part_key)

        def change(data: bytes | None) -> bytes | None:
            if data is None:
                return to_parquet(rows)
            old = read_part(key, data)
            there = set(row_keys(old))
            new = [i for i, row in enumerate(row_keys(rows)) if row not in there]
            if not new:
                return None
            return to_parquet(pa.concat_tables([old, rows.take(new).cast(old.schema)]))

        update(self._store, key, change)

    def clear(self) -> None:
        """Remove them all."""
        for key in self.keys():
            self._store.delete(key)


def staged_table(
    keys: Sequence[RowKey], column: str, codes: pa.Array, mismatch: Sequence[float]
) -> pa.Table:
    """Rows of ``Staging``: which they are, and their tokens. ``mismatch``: see ``SampleCheck``."""
    arrays = [
        pa.array([key[i] for key in keys], type=of_type) for i, of_type in enumerate(_KEY_FIELDS)
    ]
    fields = [
        *(pa.field(n, t) for n, t in zip(KEY_COLUMNS, _KEY_FIELDS, strict=True)),
        pa.field(column, codes.type),
    ]
    metadata = {METADATA_KEY: json.dumps({"sample_mismatch": list(mismatch)}).encode()}
    return pa.table([*arrays, codes], schema=pa.schema(fields, metadata=metadata))


def put_into(table: pa.Table, staged: pa.Table | None, addition: Addition) -> pa.Table | None:
    """A part with the tokens that were made for it; None where that changes nothing.

    Rows that have got them are of the recipe ``addition.target`` from now on. All else stays as it
    is, other recipes' rows and rows without new tokens among it.
    """
    made = {} if staged is None else {key: i for i, key in enumerate(row_keys(staged))}
    recipes = table["recipe"].to_pylist()
    found = [
        made.get(key) if recipe == addition.base else None
        for key, recipe in zip(row_keys(table), recipes, strict=True)
    ]
    schema = addition.schema(table.schema)
    if schema.equals(table.schema) and not any(i is not None for i in found):
        return None
    columns = {name: table[name] for name in table.column_names}
    columns["recipe"] = pa.array(
        [r if i is None else addition.target.id for r, i in zip(recipes, found, strict=True)],
        pa.string(),
    )
    columns[addition.column] = _tokens(table, staged, addition, found)
    if staged is not None and not _has_sample_check(schema, addition.column):
        mismatch = json.loads(staged.schema.metadata[METADATA_KEY])["sample_mismatch"]
        if mismatch:
            schema = with_sample_check(schema, {addition.tokenizer.name: mismatch})
    return pa.table([columns[name] for name in schema.names], schema=schema)


def with_recipe(failures: pa.Table, addition: Addition) -> pa.Table | None:
    """Failures with the new recipe for the old one; None where that changes nothing.

    A recording that could not be decoded for the one cannot be decoded for the other.
    """
    old = pc.equal(failures["recipe"], addition.base)
    if not pc.any(old).as_py():
        return None
    at = failures.column_names.index("recipe")
    recipes = pc.if_else(old, addition.target.id, failures["recipe"])
    return failures.set_column(at, failures.schema.field("recipe"), recipes)


def _has_sample_check(schema: pa.Schema, column: str) -> bool:
    """Whether a sample of a token column was made anew when it was made."""
    return any(
        one["column"] == column and "sample_mismatch" in one for one in described_tokenizers(schema)
    )


def _tokens(
    table: pa.Table, staged: pa.Table | None, addition: Addition, found: Sequence[int | None]
) -> pa.Array:
    """The tokens of each row: new ones where there are, else what is there."""
    column, of_type, count = addition.column, addition.of_type, table.num_rows
    there = column in table.column_names and table.schema.field(column).type.equals(of_type)
    arrays = table[column].chunks if there else [pa.nulls(count, of_type)]
    if staged is not None:
        arrays = [*arrays, *staged[column].chunks]
    take = [row if i is None else count + i for row, i in enumerate(found)]
    return pa.concat_arrays(arrays).take(pa.array(take, pa.int64()))
