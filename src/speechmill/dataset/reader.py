"""Readers of a sink: one version of each part, also while others write."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from speechmill.dataset.commit import read_part, unreadable
from speechmill.dataset.known import check_rows, check_schema
from speechmill.dataset.layout import DATA
from speechmill.dataset.measured import read_measures, with_measure
from speechmill.dataset.native import called_by_arrow, file_of, kept
from speechmill.dataset.schema import described_tokenizers, row_schema
from speechmill.dataset.state import current_recipe, read_recipe, sink_state
from speechmill.errors import ConflictError, NotFoundError
from speechmill.storage import Object, Store, StoreOptions, open_store
from speechmill.storage.local import LocalStore

__all__ = [
    "READERS",
    "dataset_of",
    "list_parts",
    "open_dataset",
    "read_columns",
    "read_version",
    "scan",
    "stored_schema",
]

PART_KEY = re.compile(r"[^/]+/folder=[^/]*/part-\d+-of-\d+\.parquet")
# A part up to this size is fetched whole: one request costs less than three.
WHOLE_BYTES = 512 * 1024
TAIL_BYTES = 64 * 1024  # read first of a larger part: it holds the footer
READERS = 16  # parts read in parallel: reading waits for the store
NEWEST_PARTS = 8  # searched for the present columns, at most
MAX_RESTARTS = 20  # after a part was replaced while it was read


def list_parts(store: Store, root: str = DATA) -> list[Object]:
    """List the part files below ``root`` ("data" or "failures"), by key; none in a new sink."""
    try:
        parts = [o for o in store.list(root) if PART_KEY.fullmatch(o.key)]
    except NotFoundError:
        return []
    return sorted(parts, key=lambda o: o.key)


class _PinnedFile(io.RawIOBase):
    """One version of an object, read by ranges; ``ConflictError`` once it has been replaced."""

    def __init__(self, store: Store, part: Object) -> None:
        self._store, self._part = store, part
        self._at = 0
        self._tail_start = max(0, part.size - TAIL_BYTES)
        self._tail = self._fetch(self._tail_start, part.size - self._tail_start)

    def _fetch(self, start: int, length: int) -> bytes:
        return self._store.read(self._part.key, start, length, etag=self._part.etag)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._part.size if size < 0 else min(self._at + size, self._part.size)
        start, self._at = self._at, max(self._at, end)
        if end <= start:
            return b""
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : end - self._tail_start]
        return self._fetch(start, end - start)


def read_columns(store: Store, part: Object, columns: Sequence[str]) -> pa.Table:
    """Read columns of one part, all of one version; those that it lacks are left out.

    A part that is replaced while it is read is read again.

    Raises:
        NotFoundError: the part is gone.
        DatasetError: it is no Parquet file.
    """
    return read_version(store, part, columns)[1]


def read_version(store: Store, part: Object, columns: Sequence[str]) -> tuple[Object, pa.Table]:
    """Read as ``read_columns``. Also returns the part as it was read, with its etag."""
    for _ in range(MAX_RESTARTS):
        if part.size <= WHOLE_BYTES:
            blob = store.get(part.key)
            table = read_part(part.key, blob.data)
            found = Object(part.key, len(blob.data), blob.etag, blob.modified_us)
            return found, table.select([c for c in columns if c in table.column_names])
        try:
            # Arrow fetches each column chunk by one read of our file.
            file = pq.ParquetFile(
                pa.PythonFile(_PinnedFile(store, part), mode="r"), page_checksum_verification=True
            )
            check_schema(part.key, file.schema_arrow)
            names = file.schema_arrow.names
            table = file.read(columns=[c for c in columns if c in names], use_threads=False)
        except ConflictError:
            part = store.head(part.key)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(part.key, error) from None
        else:
            check_rows(part.key, table)
            return part, table
    raise ConflictError(
        f"{part.key} of the sink was replaced {MAX_RESTARTS} times while it was read"
    )


def scan(
    store: Store, columns: Sequence[str], root: str = DATA
) -> Iterator[tuple[Object, pa.Table]]:
    """Read columns of every part below ``root``, in order, several parts ahead."""
    parts = list_parts(store, root)
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        for start in range(0, len(parts), READERS):
            some = parts[start : start + READERS]
            tables = pool.map(lambda p: read_columns(store, p, columns), some)
            yield from zip(some, tables, strict=True)


class _WholeFileSystem(pafs.FileSystemHandler):  # type: ignore[misc]
    """A store as a file system for pyarrow that fetches each file whole, so in one version."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WholeFileSystem) and other._store.url == self._store.url

    def __hash__(self) -> int:
        return hash(self._store.url)

    def get_type_name(self) -> str:
        return "speechmill"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            found = self._store.head(path)
        except NotFoundError:
            return pafs.FileInfo(path, pafs.FileType.NotFound)
        return pafs.FileInfo(path, pafs.FileType.File, size=found.size)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return [
            pafs.FileInfo(o.key, pafs.FileType.File, size=o.size)
            for o in self._store.list(selector.base_dir)
        ]

    def open_input_file(self, path: str) -> pa.NativeFile:
        with called_by_arrow():
            return file_of(self._store.get(path).data)

    open_input_stream = open_input_file

    def _read_only(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a dataset is opened for reading only")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _read_only
    delete_file = move = copy_file = open_output_stream = open_append_stream = _read_only


def stored_schema(store: Store) -> pa.Schema | None:
    """Read the schema of the newest part that has the tokens of the present recipe, or else of the
    newest part, with the columns of all measures; None without parts.

    Older parts, and those of a build that began earlier, may lack columns of it.

    Raises:
        DatasetError: a part cannot be read.
    """
    schema = _newest_schema(store)
    if schema is not None:
        for measure in read_measures(store).values():
            schema = with_measure(schema, measure)
    return schema


def _newest_schema(store: Store) -> pa.Schema | None:
    newest = sorted(list_parts(store), key=lambda p: p.modified_us, reverse=True)
    if not newest:
        return None
    recipe = read_recipe(store, current_recipe(store) or "")
    wanted = recipe.choices.get("tokenizers", {}).keys() if recipe else set()
    first = None
    for part in newest[:NEWEST_PARTS]:
        schema = _schema_of(store, part)
        first = first or schema
        if wanted <= {one["column"] for one in described_tokenizers(schema)}:
            return schema
    return first


def _schema_of(store: Store, part: Object) -> pa.Schema:
    try:
        schema = pq.read_schema(pa.BufferReader(store.get(part.key).data))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(part.key, error) from None
    check_schema(part.key, schema)
    return schema


def dataset_of(store: Store) -> pads.Dataset:
    """Make a pyarrow dataset of the rows.

    Each part is fetched whole when it is scanned, or opened once where it is a file, so its rows
    are of one version. Columns that older parts lack are null there.

    Raises:
        DatasetError: a part cannot be read.
    """
    schema = stored_schema(store)
    if schema is None:
        return pads.dataset(row_schema(()).empty_table())
    return pads.dataset(
        [p.key for p in list_parts(store)],
        schema=schema,
        filesystem=_file_system(store),
        format="parquet",
        partitioning=None,
    )


def _file_system(store: Store) -> pafs.FileSystem:
    if isinstance(store, LocalStore):
        with contextlib.suppress(UnicodeEncodeError):  # Arrow knows only names in UTF-8
            # Files are replaced by renaming: one that is open stays the version that it is.
            return pafs.SubTreeFileSystem(store.url, pafs.LocalFileSystem())
    return kept(_WholeFileSystem(store))


def open_dataset(
    sink: str,
    *,
    profile: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    anonymous: bool = False,
    request_payer: bool = False,
) -> pads.Dataset:
    """Open the rows of a sink, local or in a bucket, as a pyarrow dataset.

    It may be read while a build runs: each part is fetched whole, in one version. ``anonymous``:
    requests are not signed, for public buckets; ``request_payer``: your keys' owner pays for them.

    Raises:
        StorageError: the sink cannot be listed or read.
        DatasetError: there is no dataset, or a part cannot be read.
    """
    options = StoreOptions(
        profile, endpoint_url, region, anonymous=anonymous, request_payer=request_payer
    )
    store = open_store(sink, options)
    sink_state(store)
    return dataset_of(store)
