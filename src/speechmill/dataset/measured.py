"""Columns that measures make: where they stand in a part, and what a sink has agreed on of them.

``_speechmill/measures.json`` says which version of which measure the rows are to have. A part's
metadata says, under ``measures``, which its columns are of. Measures shape no row's identity, so
they are no part of a recipe: a row that lacks one is as good as before.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.dataset.layout import MEASURES_KEY
from speechmill.dataset.schema import metadata_of, with_metadata
from speechmill.dataset.stated import json_object
from speechmill.dataset.swap import stored, update
from speechmill.errors import DatasetError
from speechmill.storage import Store

__all__ = [
    "MeasureColumns",
    "agree_on_measures",
    "check_measures",
    "described_measures",
    "has_values",
    "read_measures",
    "with_measure",
    "with_measures_of",
    "without_stale_measures",
]

NESTED_COLUMNS = ("segments", "words")
"""The last columns of a row: fastparquet miscounts those that come after structs."""


@dataclass(frozen=True, slots=True)
class MeasureColumns:
    """What a dataset keeps of a measure: its columns, and what their values are of."""

    name: str
    version: int
    recipe: Mapping[str, object]
    fields: tuple[pa.Field, ...]

    def described(self) -> dict[str, Any]:
        """What the metadata tells of it, as JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "recipe": json.loads(json.dumps(dict(self.recipe))),
            "columns": [field.name for field in self.fields],
        }

    def differences(self, described: Mapping[str, Any]) -> list[str]:
        """What differs in another description, one line each, as ``what: that → this``."""
        mine = self.described()
        return [
            f"{key}: {json.dumps(described.get(key))} → {json.dumps(mine[key])}"
            for key in ("version", "recipe", "columns")
            if described.get(key) != mine[key]
        ]


def described_measures(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What a schema's metadata tells of its measures, by name."""
    return {one["name"]: one for one in metadata_of(schema).get("measures", [])}


def with_measure(schema: pa.Schema, measure: MeasureColumns) -> pa.Schema:
    """The schema of a part with the columns of a measure; the same where the part has them."""
    described = described_measures(schema)
    if described.get(measure.name) == measure.described():
        return schema
    before = described.pop(measure.name, {"columns": []})["columns"]
    for name in (*before, *(f.name for f in measure.fields)):
        if name in schema.names:
            schema = schema.remove(schema.names.index(name))
    nested = [schema.names.index(name) for name in NESTED_COLUMNS if name in schema.names]
    place = min(nested, default=len(schema.names))
    for offset, field in enumerate(measure.fields):
        schema = schema.insert(place + offset, field)
    measures = [*described.values(), measure.described()]
    return with_metadata(schema, measures=sorted(measures, key=lambda one: one["name"]))


def with_measures_of(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """A schema with those measures that only ``other`` has, so that rows that come to a part leave
    the values of those that are there."""
    mine = described_measures(schema)
    for name, described in described_measures(other).items():
        if name not in mine:
            fields = tuple(other.field(column) for column in described["columns"])
            version, recipe = described["version"], described["recipe"]
            schema = with_measure(schema, MeasureColumns(name, version, recipe, fields))
    return schema


def without_stale_measures(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows without the values of those measures that ``schema`` has in another version."""
    wanted = described_measures(schema)
    for name, described in described_measures(table.schema).items():
        if name in wanted and wanted[name] != described:
            table = table.drop_columns(described["columns"])
    return table


def has_values(table: pa.Table, measure: MeasureColumns) -> NDArray[np.bool_]:
    """Which rows of a part, bool [num_rows], have this very measure."""
    found = np.zeros(table.num_rows, bool)
    if described_measures(table.schema).get(measure.name) == measure.described():
        for field in measure.fields:
            if field.name in table.column_names:
                found |= table[field.name].is_valid().to_numpy()
    return found


def read_measures(store: Store) -> dict[str, MeasureColumns]:
    """What a sink has agreed on, by the measures' names.

    Raises:
        DatasetError: it cannot be read.
    """
    return _parse(stored(store, MEASURES_KEY))


def agree_on_measures(
    store: Store, measures: tuple[MeasureColumns, ...], *, remake: bool = False
) -> None:
    """Record which measures the rows of a sink are to have, or find that they have others.

    Raises:
        DatasetError: one is there in another version or with other options, and ``remake`` is not
            set.
    """

    def change(data: bytes | None) -> bytes | None:
        kept = _parse(data)
        if not remake:
            _refuse_others(store, kept, measures)
        new = {**kept, **{one.name: one for one in measures}}
        return None if new == kept else _to_json(new)

    if measures:
        update(store, MEASURES_KEY, change)


def check_measures(store: Store, measures: tuple[MeasureColumns, ...]) -> None:
    """Find out whether a sink has one of these measures in another version. Writes nothing.

    Raises:
        DatasetError: it has.
    """
    _refuse_others(store, read_measures(store), measures)


def _refuse_others(
    store: Store, kept: Mapping[str, MeasureColumns], measures: tuple[MeasureColumns, ...]
) -> None:
    for one in measures:
        there = kept.get(one.name)
        if there is not None and (differences := one.differences(there.described())):
            raise DatasetError(
                f"{store.url} has the measure {one.name!r}, made in another way (sink → this): "
                f"{'; '.join(differences)}. Use the Speechmill that made it, or speechmill "
                f"measure {store.url} {one.name} --remake to measure all rows again"
            )


def _to_json(measures: Mapping[str, MeasureColumns]) -> bytes:
    kept = {
        name: {
            "version": one.version,
            "recipe": one.described()["recipe"],
            "schema": base64.b64encode(pa.schema(one.fields).serialize()).decode(),
        }
        for name, one in sorted(measures.items())
    }
    return json.dumps(kept, indent=2, ensure_ascii=False).encode()


def _parse(data: bytes | None) -> dict[str, MeasureColumns]:
    if data is None:
        return {}
    try:
        return {
            name: MeasureColumns(
                name,
                int(one["version"]),
                {**one["recipe"]},
                tuple(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(one["schema"])))),
            )
            for name, one in json_object(data).items()
        }
    except (ValueError, KeyError, TypeError, OverflowError, pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{MEASURES_KEY} of the sink cannot be read ({error!r}); restore it from a backup, or "
            "remove it and measure again"
        ) from None
