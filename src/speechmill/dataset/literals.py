"""Values that a condition names, in the types of the columns that they are compared with."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pyarrow as pa

__all__ = ["Literal", "any_of", "is_text", "is_texts", "kind", "typed"]

Literal = str | int | float | bool


def is_text(of_type: pa.DataType) -> bool:
    """Whether it is a text."""
    return kind(of_type) == "text"


def is_texts(of_type: pa.DataType) -> bool:
    """Whether it is a list of texts."""
    return pa.types.is_list(of_type) and is_text(of_type.value_type)


def kind(of_type: pa.DataType) -> str:
    """What a type's values may be compared with, in words."""
    if pa.types.is_boolean(of_type):
        return "true or false"
    if pa.types.is_integer(of_type) or pa.types.is_floating(of_type):
        return "a number"
    if pa.types.is_timestamp(of_type):
        return "time"
    return "text" if pa.types.is_string(of_type) or pa.types.is_large_string(of_type) else "nested"


def _kind_of(value: Literal) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "text" if isinstance(value, str) else "a number"


def typed(value: Literal, name: str, of_type: pa.DataType) -> pa.Scalar:
    """Convert a value to the type of the column ``name``, or to the nearest one that keeps it.

    Raises:
        ValueError: it cannot be compared with such a column.
    """
    wanted = kind(of_type)
    if wanted == "time" and isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
            if time.tzinfo is None:
                time = time.replace(tzinfo=datetime.UTC)
            if of_type.tz is None:
                time = time.astimezone(datetime.UTC).replace(tzinfo=None)
            return pa.scalar(time, of_type)
        except (ValueError, OverflowError):
            raise ValueError(f"{value!r} is no time such as 2026-11-24T09:30") from None
    if wanted != _kind_of(value):
        raise ValueError(f"{name} is {of_type}, and {value!r} is {_kind_of(value)}")
    if pa.types.is_floating(of_type):
        return pa.scalar(float(value), of_type)
    return pa.scalar(value)


def any_of(values: Sequence[Literal], name: str, of_type: pa.DataType) -> pa.Array:
    """Convert the values of an IN to the column's type; those that no value of it equals are left
    out.

    Raises:
        ValueError: one cannot be compared with such a column.
    """
    found = [typed(value, name, of_type).as_py() for value in values]
    if pa.types.is_integer(of_type):
        bits = of_type.bit_width - pa.types.is_signed_integer(of_type)
        low = -(2**bits) if pa.types.is_signed_integer(of_type) else 0
        found = [int(value) for value in found if low <= value < 2**bits and value == int(value)]
    elif pa.types.is_floating(of_type) and 0 in found:
        found += [0.0, -0.0]  # equal, but not to Arrow's is_in
    return pa.array(found, of_type)
