"""A measure as an addition. Measures shape no row's identity, so the rows' recipe stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from speechmill.dataset.measured import agree_on_measures, has_values, with_measure
from speechmill.enrich.base import RowState
from speechmill.enrich.staging import Staging, merged_column, staged_at
from speechmill.measures.base import Measure
from speechmill.measures.columns import columns_of
from speechmill.pipeline.intake import ReadyRow
from speechmill.pipeline.measure import measure_rows
from speechmill.recipe import Recipe
from speechmill.storage import Store

__all__ = ["MeasureAddition"]


class MeasureAddition:
    """The columns of one measure, for rows that lack it.

    A row is measured that has a value in one of them. ``recipe`` says how the audio of the sink's
    rows was decoded.
    """

    mismatch = ()

    def __init__(self, measure: Measure, sink: Store, recipe: Recipe) -> None:
        self.measure, self.described = measure, columns_of(measure)
        self.name, self.fields = measure.name, measure.fields
        self.row_columns = measure.needs.columns
        self.looked_at = tuple(field.name for field in self.fields)
        # What looks at other columns is of the rows that one recipe made.
        made_of = recipe.id if self.row_columns else recipe.choices.get("audio")
        shaping = json.dumps([made_of, self.described.described()], sort_keys=True)
        self.staging = Staging(sink, hashlib.sha256(shaping.encode()).hexdigest()[:16])

    def states(self, part: pa.Table) -> list[RowState]:
        """See ``Addition``: told by the values that are there, and what they are of."""
        return ["there" if one else "lacking" for one in has_values(part, self.described)]

    def compute(
        self, rows: Sequence[ReadyRow], columns: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Any, ...]]:
        """Measure rows."""
        return measure_rows(self.measure, rows, columns)

    def arrays(self, values: Sequence[tuple[Any, ...]]) -> list[pa.Array]:
        """Values of rows as the columns' arrays."""
        return [
            pa.array([row[i] for row in values], field.type) for i, field in enumerate(self.fields)
        ]

    def notes(self) -> Mapping[str, Any]:
        """Nothing: the staging's name says what was measured."""
        return {}

    def before_merging(self, sink: Store) -> None:
        """Record this version of the measure as the one that the sink's rows are to have."""
        agree_on_measures(sink, (self.described,), remake=True)

    def put_into(self, part: pa.Table, staged: pa.Table | None) -> pa.Table | None:
        """A part with what was measured of it; None where that changes nothing.

        Values of another version of the measure go: they would be taken for this one's.
        """
        there = has_values(part, self.described)
        at = [None if t else i for t, i in zip(there, staged_at(part, staged), strict=True)]
        schema = with_measure(part.schema, self.described)
        is_new = any(place is not None for place in at)
        if schema.equals(part.schema, check_metadata=True) and not is_new:
            return None
        if not there.any():
            stale = [name for name in self.looked_at if name in part.column_names]
            part = part.drop_columns(stale)
        columns = {name: part[name] for name in part.column_names}
        for field in self.fields:
            columns[field.name] = merged_column(part, staged, field, at)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def after_merging(self, failures: pa.Table) -> pa.Table | None:  # noqa: ARG002 - see Addition
        """Failures stay as they are."""
        return None
