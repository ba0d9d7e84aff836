"""Conform the tables of parts that were written at different times to one schema."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from speechmill.dataset.measured import without_stale_measures
from speechmill.errors import DatasetError

__all__ = ["conform", "rebuild_first"]


def conform(
    table: pa.Table,
    schema: pa.Schema,
    *,
    other_type: Callable[[pa.Field, pa.DataType], Exception] | None = None,
) -> pa.Table:
    """Give a table the columns of a schema, in its order and with its metadata.

    A column that the table lacks is null; one that the schema lacks is left out. Where a column has
    another type, ``other_type`` makes the error that is raised; without it, the column is null. The
    values of another version of a measure are null, too.

    Args:
        table: the rows of a part.
        schema: the columns of the result.
        other_type: makes an error of the expected field and the type that was found.

    Raises:
        Exception: what ``other_type`` makes.
    """
    table = without_stale_measures(table, schema)
    arrays = []
    for field in schema:
        there = table.schema.field(field.name) if field.name in table.column_names else None
        if there is not None and there.type.equals(field.type):
            arrays.append(table[field.name])
            continue
        if there is not None and other_type is not None:
            raise other_type(field, there.type)
        arrays.append(pa.nulls(table.num_rows, field.type))
    return pa.table(arrays, schema=schema)


def rebuild_first(key: str) -> Callable[[pa.Field, pa.DataType], DatasetError]:
    """Make the ``other_type`` of a part whose column has another type than the other parts."""

    def error(field: pa.Field, there: pa.DataType) -> DatasetError:
        return DatasetError(
            f"{key} has the column {field.name} as {there}, other parts as {field.type}: finish "
            "the rebuild of this dataset first"
        )

    return error
