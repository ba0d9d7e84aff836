"""Token columns as arrays: the values of to_pylist, in the column's own memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import speechmill
from speechmill import tokens_to_arrays
from speechmill.errors import DatasetError
from tests.support.corpus import build, memory, wav


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.ChunkedArray, list[Any]]:
    """A column of tokens in several chunks, cut out of a longer one, and its values."""
    shape = st.tuples(st.integers(0, 4), st.integers(0, 5))
    shapes = draw(st.lists(st.none() | shape, max_size=12))
    values = [
        None if s is None else [[100 * i + 10 * k + t for t in range(s[1])] for k in range(s[0])]
        for i, s in enumerate(shapes)
    ]
    large = draw(st.booleans())
    as_list = pa.large_list if large else pa.list_
    of_type = as_list(as_list(draw(st.sampled_from([pa.int16(), pa.int32(), pa.float32()]))))
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=3)))
    whole = pa.array(values, type=of_type)
    bounds = [*cuts, len(values)] if cuts else [0, len(values)]
    pieces = [whole.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    return pa.chunked_array(pieces, type=of_type), values[bounds[0] :]


@given(columns())
def test_arrays_have_the_values_of_the_lists(case: tuple[pa.ChunkedArray, list[Any]]) -> None:
    column, values = case
    arrays = tokens_to_arrays(column)
    assert [None if a is None else a.tolist() for a in arrays] == values
    dtype = column.type.value_type.value_type.to_pandas_dtype()
    assert all(a is None or a.dtype == dtype for a in arrays)
    assert all(a is None or a.ndim == 2 for a in arrays)


def test_arrays_are_views_of_the_columns_memory() -> None:
    column = pa.array([[[1, 2], [3, 4]], [[5], [6]]], type=pa.list_(pa.list_(pa.int16())))
    start = column.values.values.buffers()[1].address
    addresses = [a.ctypes.data for a in tokens_to_arrays(column) if a is not None]
    assert addresses == [start, start + 8]


def test_arrays_outlive_their_column() -> None:
    column = pa.array([[[i] * 1_000] for i in range(100)], type=pa.list_(pa.list_(pa.int32())))
    arrays = tokens_to_arrays(column)
    del column
    assert [int(a.sum()) for a in arrays if a is not None] == [1_000 * i for i in range(100)]


@pytest.mark.parametrize("tokenizer", ["mfcc", "fake", "none"])
def test_the_tokens_of_a_sink_as_arrays(tokenizer: str) -> None:
    sink = memory()
    build(memory({f"p1/{i}.wav": wav(i, 0.1 + i / 10) for i in range(3)}), sink,
          tokenizer=(tokenizer,))  # fmt: skip
    column = speechmill.open_dataset(sink).to_table()["token"]
    for array, expected in zip(tokens_to_arrays(column), column.to_pylist(), strict=True):
        if array is None:
            assert tokenizer == "none"
            assert expected is None
        else:
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == (np.float32 if tokenizer == "mfcc" else np.int16)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([[[1, 2], [3]]], "one length"),
        ([[[1, None]]], "value is null"),
        ([[[1], None]], "row of an utterance is null"),
    ],
)
def test_tokens_that_are_no_matrix_are_an_error(value: list[Any], what: str) -> None:
    with pytest.raises(DatasetError, match=what):
        tokens_to_arrays(pa.array(value, type=pa.list_(pa.list_(pa.int32()))))


@pytest.mark.parametrize("column", [pa.array(["text"]), pa.array([[1, 2]]), pa.array([[["a"]]])])
def test_a_column_of_something_else_is_an_error(column: pa.Array) -> None:
    with pytest.raises(DatasetError, match="holds no tokens"):
        tokens_to_arrays(column)
