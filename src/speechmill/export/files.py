"""Writing a sink's rows into other files: by units, each of which a thread or a worker can do."""

from __future__ import annotations

import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.dataset.commit import read_part
from speechmill.dataset.conform import conform
from speechmill.dataset.layout import directory
from speechmill.dataset.schema import parquet_writer
from speechmill.errors import NotFoundError, ReplacedError
from speechmill.machine import num_cores
from speechmill.storage import Object, Store, StoreOptions, open_store

__all__ = ["File", "Piece", "Place", "Unit", "groups", "in_threads", "write_unit"]

ROW_GROUP_BYTES = 32 * 1024**2  # in memory: a file that grows beyond it is begun
WRITERS = 8  # files of a unit that are sent to the store at the same time
WAITING = 4 * WRITERS  # files that are complete and wait for that
LOOK_AROUND_S = 0.5
# Hive's own name for null, __HIVE_DEFAULT_PARTITION__, keeps Dask from reading such files.
NULL, EMPTY = "_null", "_empty"


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and how to reach it. No secrets; may be sent to a worker."""

    url: str
    options: StoreOptions = StoreOptions()  # noqa: RUF009 - it is frozen

    def open(self) -> Store:
        """The store itself."""
        return open_store(self.url, self.options)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a part that come into a file: of those of the file's group, ``count`` after
    ``skip``. ``source`` is the part's number."""

    source: int
    skip: int
    count: int


@dataclass(frozen=True, slots=True)
class File:
    """A file that is to be written: rows of one group, by part."""

    key: str
    directory: str
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many it will hold."""
        return sum(piece.count for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that are written together, of parts that are read once. ``sources`` are the parts by
    number; ``schema`` is that of all files, as Arrow serialises it."""

    sink: Place
    out: Place
    by: tuple[str, ...]
    sources: tuple[tuple[int, Object], ...]
    files: tuple[File, ...]
    schema: bytes


def groups(table: pa.Table, by: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The directory that each row comes into: the different ones, and for each row the number of
    its own, int64 [num_rows]. A column that is not there is null."""
    combined = np.zeros(table.num_rows, np.int64)
    names = [""]
    for column in by:
        if column in table.column_names:
            encoded = table[column].combine_chunks().dictionary_encode(null_encoding="encode")
            values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        else:
            values, codes = [None], np.zeros(table.num_rows, np.int64)
        found, combined = np.unique(combined * len(values) + codes, return_inverse=True)
        names = [
            f"{names[number // len(values)]}/{_component(column, values[number % len(values)])}"
            for number in found.tolist()
        ]
    unique = {name: number for number, name in enumerate(dict.fromkeys(names))}
    renumbered = np.array([unique[name] for name in names] or [0], np.int64)
    return [name.removeprefix("/") for name in unique], renumbered[combined]


def _component(column: str, value: object) -> str:
    """``by_<column>=<value>``: never the name of a column, which readers could not tell apart."""
    text = NULL if value is None else str(value) or EMPTY
    return f"by_{column}={directory(text).removeprefix('folder=')}"


def in_threads(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
    """Do units in threads of this process. Yields the rows of each that is done; 0 now and then.

    Raises:
        SpeechmillError: see ``write_unit``.
    """
    workers = num_cores()
    waiting = iter(units)
    running: set[Future[int]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="rewrite") as pool:
        while True:
            if not stop():
                for unit in islice(waiting, workers - len(running)):
                    running.add(pool.submit(write_unit, unit))
            if not running:
                return
            finished, running = wait(running, LOOK_AROUND_S, FIRST_COMPLETED)
            yield sum(future.result() for future in finished)


def write_unit(unit: Unit) -> int:
    """Write the files of a unit. Returns how many rows they hold.

    Raises:
        ReplacedError: a part is no longer what it was when this was planned.
        DatasetError: a part cannot be read, or has a column of another type.
        StorageError: a store cannot be read or written.
    """
    store, out = unit.sink.open(), unit.out.open()
    schema = pa.ipc.read_schema(pa.py_buffer(unit.schema))
    wanted: defaultdict[int, list[tuple[_Writing, Piece]]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speechmill-")))
        pool = stack.enter_context(ThreadPoolExecutor(WRITERS, thread_name_prefix="write"))
        for number, file in enumerate(unit.files):
            writing = _Writing(out, file, schema, folder / f"{number}.parquet")
            for piece in file.pieces:
                wanted[piece.source].append((writing, piece))
        sending: deque[Future[None]] = deque()
        for number, source in unit.sources:
            table = _read(store, source, schema)
            of_group = dict(_rows_by_group(table, unit.by))
            rows = [
                of_group[writing.file.directory][piece.skip : piece.skip + piece.count]
                for writing, piece in wanted[number]
            ]
            # All at once, and then cut: thousands of small tables would take a gigabyte.
            table = table.take(pa.array(np.concatenate(rows))).combine_chunks()
            start = 0
            for writing, piece in wanted.pop(number):
                writing.add(table.slice(start, piece.count))
                start += piece.count
                if writing.complete:
                    sending.append(pool.submit(writing.send))
                    _settle(sending, WAITING)
            del table, writing
        _settle(sending, 0)
    return sum(file.rows for file in unit.files)


def _settle(sending: deque[Future[None]], most: int) -> None:
    """Wait until no more than so many files are on their way."""
    while len(sending) > most:
        sending.popleft().result()


def _rows_by_group(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each group's rows in order, by its directory."""
    names, numbers = groups(table, by)
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=len(names)))
    return zip(names, np.split(order, ends[:-1]), strict=True)


def _read(store: Store, source: Object, schema: pa.Schema) -> pa.Table:
    """A part, with the columns of ``schema``: null where it lacks them."""
    try:
        blob = store.get(source.key)
    except NotFoundError:
        blob = None
    if blob is None or blob.etag != source.etag:
        raise ReplacedError(
            f"{source.key} of the sink was replaced meanwhile: when nothing writes to the sink, "
            "empty OUT and begin anew"
        )
    return conform(read_part(source.key, blob.data), schema, strictly=source.key)


@dataclass(slots=True)
class _Writing:
    """A file on its way: rows in memory, and once they are many, in a local file."""

    out: Store
    file: File
    schema: pa.Schema
    path: Path
    pending: list[pa.Table] = field(default_factory=list)
    pending_bytes: int = 0
    rows: int = 0
    writer: pq.ParquetWriter | None = None

    @property
    def complete(self) -> bool:
        return self.rows == self.file.rows

    def add(self, table: pa.Table) -> None:
        self.pending.append(table)
        self.pending_bytes += table.nbytes
        self.rows += table.num_rows
        if self.pending_bytes > ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> pq.ParquetWriter:
        self.writer = self.writer or parquet_writer(self.path, self.schema)
        if self.pending:
            self.writer.write_table(pa.concat_tables(self.pending))
        self.pending.clear()
        self.pending_bytes = 0
        return self.writer

    def send(self) -> None:
        self._flush().close()
        self.out.put_file(self.file.key, self.path)
        self.path.unlink()
