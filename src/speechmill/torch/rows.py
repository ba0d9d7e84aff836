"""The reader of a sink's rows as samples that both kinds of dataset use, in any process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.index import check_columns, open_index, read_rows
from speechmill.errors import UnsupportedError
from speechmill.storage import Store, StoreOptions, open_store

__all__ = ["Part", "RowReader", "Sample", "Transform"]

PARALLEL_READS = 4  # parts that a worker fetches in parallel; a loader has several workers

Sample = dict[str, Any]
"""One row: its columns by name; tokens and other lists of numbers as tensors."""

Transform = Callable[[Sample], Any]
"""Is applied to each sample where it is read: in the worker."""


class Part:
    """The selected rows of one part, in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.num_bytes = int(table.nbytes)
        self._columns = {name: _values(table[name]) for name in table.column_names}

    def sample(self, number: int) -> Sample:
        """Make the sample of a row, with tensors of its own memory."""
        return {
            name: _tensor(value) if isinstance(value := values[number], np.ndarray) else value
            for name, values in self._columns.items()
        }


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Convert a column: views of Arrow's memory where it holds numbers, else Python objects."""
    if _holds_numbers(column.type, 2):
        return tokens_to_arrays(column)
    if _holds_numbers(column.type, 1):
        dtype = column.type.value_type.to_pandas_dtype()
        return [None if v is None else np.asarray(v, dtype) for v in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def _holds_numbers(of_type: pa.DataType, depth: int) -> bool:
    for _ in range(depth):
        if not (pa.types.is_list(of_type) or pa.types.is_large_list(of_type)):
            return False
        of_type = of_type.value_type
    return bool(pa.types.is_integer(of_type) or pa.types.is_floating(of_type))


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Convert features to float32 [num_frames, num_features], codes to int64 [num_codebooks,
    num_frames].

    The tensor is a copy: Arrow's memory may be read-only.
    """
    if np.issubdtype(values.dtype, np.floating):
        return torch.from_numpy(np.array(values.T, np.float32, order="C"))
    return torch.from_numpy(np.array(values, np.int64))


class RowReader:
    """Reads samples of a sink as it was when it was opened.

    May be pickled and forked: each process opens a store of its own.

    Raises:
        StorageError: the sink cannot be listed or read.
        DatasetError: there is no dataset, or a part cannot be read.
        JobError: there is no such column, or ``where`` is no condition on the rows.
    """

    def __init__(
        self,
        sink: str,
        columns: Sequence[str],
        where: str | pc.Expression | None,
        options: StoreOptions,
    ) -> None:
        self._sink, self._options = sink, options
        self._opened_in = os.getpid()
        self._store: tuple[int, Store] | None = None
        self.index = open_index(self.store, where)
        columns = [columns] if isinstance(columns, str) else columns
        self.columns = check_columns(self.index.schema, columns)
        self.parts_read = 0

    @property
    def store(self) -> Store:
        """The sink, opened by this process."""
        process = os.getpid()
        if self._store is None or self._store[0] != process:
            if self._sink.startswith("memory:") and process != self._opened_in:
                raise UnsupportedError(
                    f"{self._sink} is in the memory of another process: take num_workers=0, "
                    "or another sink"
                )
            self._store = process, open_store(self._sink, self._options)
        return self._store[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def parts(self, numbers: Sequence[int]) -> list[Part]:
        """Read the rows of some parts, several fetched in parallel.

        Raises:
            ReplacedError: some are gone since the sink was opened.
            StorageError, DatasetError: a part cannot be read.
        """
        store = self.store

        def read(number: int) -> Part:
            return Part(read_rows(store, self.index, number, self.columns))

        self.parts_read += len(numbers)
        if len(numbers) == 1:
            return [read(numbers[0])]
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="part") as pool:
            return list(pool.map(read, numbers))

    def frames(self) -> NDArray[np.int64]:
        """Estimate how many frames each row has from its duration: int64 [num_rows].

        They are those of the first selected token column, to within a frame or so; without one,
        hundredths of a second. A tokenizer that merges runs of codes has fewer.
        """
        rates = [r for c in self.columns if (r := self.index.frame_rate(c)) is not None]
        rate = rates[0] if rates else 100.0
        return np.asarray(np.floor(self.index.durations_s * rate), np.int64) + 1
