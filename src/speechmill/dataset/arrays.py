"""Token columns as numpy arrays, without a Python object per value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.errors import DatasetError

__all__ = ["tokens_to_arrays"]

ListArray = pa.ListArray | pa.LargeListArray


def tokens_to_arrays(column: pa.Array | pa.ChunkedArray) -> list[NDArray[Any] | None]:
    """Convert a token column to arrays: [n_mfcc, num_frames] or [num_codebooks, num_frames] each.

    They are views of the column's own memory, which they keep alive, and read-only; their dtype is
    the column's (float32; int16 or int32). An utterance without tokens is None.

    Raises:
        DatasetError: the column is no list of lists of numbers, has nulls within an utterance, or
            the rows of an utterance are not of one length.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [array for chunk in chunks for array in _chunk(chunk)]


def _chunk(outer: pa.Array) -> list[NDArray[Any] | None]:
    inner = outer.values if isinstance(outer, ListArray) else None
    if not isinstance(inner, ListArray) or not pa.types.is_primitive(inner.type.value_type):
        raise DatasetError(
            f"a column of {outer.type} holds no tokens: take token or token_<name>, which are "
            "lists of lists of numbers"
        )
    # The values of a sliced column are those of the whole; its offsets are of the slice.
    rows = outer.offsets.to_numpy()
    there = outer.is_valid().to_numpy(zero_copy_only=False)
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, 0)
    used = inner.slice(first, last - first)
    if used.null_count:
        raise _broken("a row of an utterance is null")
    frames = used.offsets.to_numpy()
    values = inner.values
    start, stop = (int(frames[0]), int(frames[-1])) if len(frames) else (0, 0)
    if values.slice(start, stop - start).null_count:
        raise _broken("a value is null")
    # Only what is used: beyond it there may be nulls, which numpy cannot show.
    flat = values.slice(start, stop - start).to_numpy(zero_copy_only=True)
    counts, lengths = np.diff(rows), np.diff(frames)
    some = there & (counts > 0)
    # For each row of an utterance: the length of its first row.
    alike = np.repeat(lengths[rows[:-1][some] - first], counts[some])
    if not np.array_equal(lengths[np.repeat(some, counts)], alike):
        raise _broken("the rows of an utterance are not of one length")
    bounds = frames[rows - first] - start
    return [
        flat[low:high].reshape(count, (high - low) // max(1, count)) if is_there else None
        for is_there, low, high, count in zip(
            there.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), counts.tolist(), strict=True
        )
    ]


def _broken(what: str) -> DatasetError:
    return DatasetError(f"a token column is not as Speechmill writes it: {what}; build it anew")
