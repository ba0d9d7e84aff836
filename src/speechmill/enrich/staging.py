"""Columns for rows that are there: what is made lies beside the data until all of it is there.

It lies under ``_speechmill/adding/``, an object a part: a command that is cut short goes on from
it, and readers see nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import ADDING
from speechmill.dataset.schema import METADATA_KEY, to_parquet
from speechmill.dataset.swap import update
from speechmill.errors import NotFoundError
from speechmill.storage import Store

__all__ = [
    "RowKey",
    "Staging",
    "merged_column",
    "notes_of",
    "row_keys",
    "staged_at",
    "staged_table",
]

RowKey = tuple[str, int, str, float, float, int | None]
"""A row: file_name, source_size, source_etag, start_s, end_s, channel."""

KEY_COLUMNS = ("file_name", "source_size", "source_etag", "start_s", "end_s", "channel")
_KEY_TYPES = (pa.string(), pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.int32())


def row_keys(table: pa.Table) -> list[RowKey]:
    """Which rows these are, by the columns of ``RowKey``. What was made before there was a
    ``channel`` has none."""
    nothing = [None] * table.num_rows
    there = table.column_names
    columns = (table[name].to_pylist() if name in there else nothing for name in KEY_COLUMNS)
    return list(zip(*columns, strict=True))


class Staging:
    """What one addition has made that is not in the parts of a sink yet. Thread-safe.

    ``staging`` names what is made, of which audio and how.
    """

    def __init__(self, store: Store, staging: str) -> None:
        self._store, self.id = store, staging

    def keys(self) -> list[str]:
        """The objects that there are."""
        try:
            listed = [o.key for o in self._store.list(ADDING)]
        except NotFoundError:
            return []
        return [key for key in listed if key.startswith(f"{ADDING}/{self.id}-")]

    def key(self, part_key: str) -> str:
        """Where those of a part are."""
        digest = hashlib.blake2b(part_key.encode(), digest_size=16).hexdigest()
        return f"{ADDING}/{self.id}-{digest}.parquet"

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
            old = _with_channel(read_part(key, data))
            there = set(row_keys(old))
            new = [i for i, row in enumerate(row_keys(rows)) if row not in there]
            if not new:
                return None
            some = rows.take(new).select(old.column_names)
            return to_parquet(pa.concat_tables([old, some.cast(old.schema)]))

        update(self._store, key, change)

    def clear(self, part_key: str) -> None:
        """Remove what there is for a part."""
        self._store.delete(self.key(part_key))


def _with_channel(staged: pa.Table) -> pa.Table:
    """Staged rows, also of before there was a ``channel``, with that column."""
    if "channel" in staged.column_names:
        return staged
    field = pa.field("channel", pa.int32())
    return staged.add_column(len(KEY_COLUMNS) - 1, field, pa.nulls(staged.num_rows, field.type))


def staged_table(
    keys: Sequence[RowKey],
    fields: Sequence[pa.Field],
    arrays: Sequence[pa.Array],
    notes: Mapping[str, Any],
) -> pa.Table:
    """Rows of ``Staging``: which they are, and their new columns; ``notes`` are kept as JSON."""
    identity = map(pa.array, zip(*keys, strict=True), _KEY_TYPES)
    named = map(pa.field, KEY_COLUMNS, _KEY_TYPES)
    metadata = {METADATA_KEY: json.dumps(dict(notes)).encode()}
    return pa.table([*identity, *arrays], schema=pa.schema([*named, *fields], metadata=metadata))


def notes_of(staged: pa.Table) -> dict[str, Any]:
    """The notes that were staged with the first of these rows."""
    return dict(json.loads(staged.schema.metadata[METADATA_KEY]))


def staged_at(table: pa.Table, staged: pa.Table | None) -> list[int | None]:
    """Where each row of a part is among the staged ones; None where it is not."""
    made = {} if staged is None else {key: i for i, key in enumerate(row_keys(staged))}
    return [made.get(key) for key in row_keys(table)]


def merged_column(
    table: pa.Table, staged: pa.Table | None, field: pa.Field, at: Sequence[int | None]
) -> pa.Array:
    """A column of a part: staged values at the places of ``staged_at``, else what is there."""
    count = table.num_rows
    there = field.name in table.column_names and table.schema.field(field.name).type == field.type
    arrays = table[field.name].chunks if there else [pa.nulls(count, field.type)]
    if staged is not None:
        arrays = [*arrays, *staged[field.name].chunks]
    take = [row if i is None else count + i for row, i in enumerate(at)]
    return pa.concat_arrays(arrays).take(pa.array(take, pa.int64()))
