"""What a part must be for Speechmill to read it: checked once, where its bytes come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.schema import FAILURE_SCHEMA, METADATA_KEY, SCHEMA_VERSION, row_schema
from speechmill.dataset.stated import json_object
from speechmill.errors import DatasetError

__all__ = ["check_rows", "check_schema"]

_ROWS = [field for field in row_schema() if field.name != "token"]
_SECONDS = (
    *("start_s", "end_s", "duration_s"),
    *("fetch_s", "decode_s", "transcribe_s", "tokenize_s"),
)
# Never null in a part that Speechmill wrote.
_THERE = {
    *("folder_name", "file_name", "recipe", "source_size", "source_etag", "source_modified"),
    *("sample_rate", "channels", *_SECONDS),
    *("stage", "error", "message", "attempts", "failed_at"),
}
_TOKENIZER: Mapping[str, type | tuple[type, ...]] = {
    "sample_rate": int,
    "hop_length": int,
    "frame_rate": (int, float),
    "num_codebooks": int,
    "codebook_size": (int, type(None)),
    "recipe": dict,
    "spec": str,
    "options": dict,
}


def check_schema(key: str, schema: pa.Schema) -> None:
    """Refuse a part of another schema version, or with other columns than Speechmill writes.

    ``key`` says whether it holds rows or failures; what is neither is not looked at.

    Raises:
        DatasetError: it is such a part.
    """
    fields = {"data": _ROWS, "failures": list(FAILURE_SCHEMA)}.get(key.partition("/")[0])
    if fields is None:
        return
    try:
        metadata = json_object((schema.metadata or {}).get(METADATA_KEY, b""))
    except ValueError as error:
        raise _foreign(key, f"its metadata cannot be understood ({error})") from None
    if (version := metadata.get("schema_version")) != SCHEMA_VERSION:
        raise DatasetError(
            f"{key} of the sink is of schema version {version!s:.20}, this Speechmill reads "
            f"{SCHEMA_VERSION}: use the Speechmill that made it, or another sink"
        )
    for field in fields:
        count = schema.names.count(field.name)
        if not count and field.name not in _THERE:  # older parts lack some
            continue
        there = schema.field(field.name).type if count == 1 else None
        if there != field.type:
            found = "is not there once" if there is None else f"is {there}, not {field.type}"
            raise _foreign(key, f"its column {field.name} {found}")
    if problem := _misdescribed(schema, metadata):
        raise _foreign(key, problem)


def _misdescribed(schema: pa.Schema, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with what the metadata tells of tokenizers and measures."""
    for kind in ("tokenizers", "measures"):
        described = metadata.get(kind, [])
        if not isinstance(described, list) or not all(isinstance(one, dict) for one in described):
            return f"its metadata has {kind} that are no list of objects"
        if not all(isinstance(one.get("name"), str) for one in described):
            return f"its metadata has {kind} without a name"
    for one in metadata.get("tokenizers", []):
        if not isinstance(one.get("column"), str):
            return f"its metadata names no column for the tokenizer {one['name']!r:.80}"
        for what, kind_of in _TOKENIZER.items():
            if what in one and not isinstance(one[what], kind_of):
                return f"its metadata has a strange {what} for the tokenizer {one['name']!r:.80}"
    for one in metadata.get("measures", []):
        columns = one.get("columns")
        if not isinstance(columns, list) or not all(c in schema.names for c in columns):
            return f"its metadata names columns of the measure {one['name']!r:.80} that it lacks"
        if not (isinstance(one.get("version"), int) and isinstance(one.get("recipe"), dict)):
            return f"its metadata does not say how the measure {one['name']!r:.80} was made"
    return None


def check_rows(key: str, table: pa.Table) -> None:
    """Refuse rows without a name, or of a duration that is no number; of those columns that the
    table has.

    Raises:
        DatasetError: there is such a row.
    """
    if key.partition("/")[0] not in ("data", "failures"):
        return
    for name in _THERE.intersection(table.column_names):
        if table[name].null_count:
            raise _foreign(key, f"its column {name} has nulls")
    for name in set(_SECONDS).intersection(table.column_names):
        if not pc.all(pc.is_finite(table[name]), min_count=0).as_py():
            raise _foreign(key, f"its column {name} has seconds that are no number")


def _foreign(key: str, problem: str) -> DatasetError:
    return DatasetError(
        f"{key} of the sink is no part that Speechmill wrote: {problem}; remove the file, and the "
        "next build makes it anew"
    )
