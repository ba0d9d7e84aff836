"""Conform the tables of parts that were written at different times to one schema."""

from __future__ import annotations

import pyarrow as pa

from speechmill.dataset.measured import without_stale_measures
from speechmill.errors import DatasetError

__all__ = ["conform"]


def conform(table: pa.Table, schema: pa.Schema, *, strictly: str | None = None) -> pa.Table:
    """Give a part's table the columns of a schema, in its order and with its metadata.

    A column that the table lacks is null; one that the schema lacks is left out. The values of
    another version of a measure are null, and so is a column of another type.

    Raises:
        DatasetError: a column has another type, and ``strictly`` is the part's key, to be named.
    """
    table = without_stale_measures(table, schema)
    arrays = []
    for field in schema:
        there = table.schema.field(field.name) if field.name in table.column_names else None
        if there is not None and there.type.equals(field.type):
            arrays.append(table[field.name])
            continue
        if there is not None and strictly is not None:
            raise DatasetError(
                f"{strictly} has the column {field.name} as {there.type}, other parts as "
                f"{field.type}: finish the rebuild of this dataset first"
            )
        arrays.append(pa.nulls(table.num_rows, field.type))
    return pa.table(arrays, schema=schema)
