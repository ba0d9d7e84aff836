"""What a sink held when it was opened: which rows of which parts, without the rows themselves.

It is what training is planned by: all ranks and workers that open the same sink while nothing is
written have the same index, and so agree on who reads what. It costs 24 bytes a row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from speechmill.ahead import ahead
from speechmill.dataset.conform import conform
from speechmill.dataset.native import matching
from speechmill.dataset.reader import READERS, list_parts, read_version, stored_schema
from speechmill.dataset.schema import described_tokenizers, row_schema
from speechmill.dataset.state import sink_state
from speechmill.dataset.where import where_expression
from speechmill.errors import JobError, NotFoundError, ReplacedError
from speechmill.storage import Object, Store

__all__ = ["Index", "check_columns", "open_index", "read_rows"]

_IDENTITY = ("file_name", "start_s", "channel")  # what tells a row from the others of its part


@dataclass(frozen=True, slots=True)
class Index:
    """The chosen rows of all parts. May be pickled.

    ``offsets``: int64 [num_parts + 1]; the rows of part p are those from ``offsets[p]`` up to
    ``offsets[p + 1]``, in the order of the part. For each row (all [num_rows]): ``places`` (int64)
    is its number in the part's file, ``identities`` (uint64) tell it again in another version of
    the file, ``durations_s`` (float64) are in seconds, 0 where unknown.
    """

    schema: pa.Schema
    parts: tuple[Object, ...]
    offsets: NDArray[np.int64] = field(repr=False)
    places: NDArray[np.int64] = field(repr=False)
    identities: NDArray[np.uint64] = field(repr=False)
    durations_s: NDArray[np.float64] = field(repr=False)

    @property
    def num_rows(self) -> int:
        """Rows in all parts."""
        return int(self.offsets[-1])

    def frame_rate(self, column: str) -> float | None:
        """Frames a second of a token column, in Hz; None where the metadata does not say."""
        for described in described_tokenizers(self.schema):
            if described["column"] == column and described.get("frame_rate"):
                return float(described["frame_rate"])
        return None

    def part_of(self, row: int) -> int:
        """Which part a row is in."""
        return int(np.searchsorted(self.offsets, row, side="right")) - 1


def open_index(store: Store, where: str | pc.Expression | None = None) -> Index:
    """Look which rows there are, and which of them fulfil ``where``.

    Reads the columns that ``where`` speaks of, and three small ones, of every part.

    Raises:
        DatasetError: there is no dataset, or a part cannot be read.
        JobError: ``where`` is no condition on these rows.
    """
    sink_state(store)
    schema = stored_schema(store) or row_schema(())
    if isinstance(where, str):
        where = where_expression(where, schema)
    mentioned = [c for c in schema.names if re.search(rf"\b{re.escape(c)}\b", str(where))]
    columns = list(dict.fromkeys([*_IDENTITY, "duration_s", *mentioned]))
    wanted = pa.schema([schema.field(name) for name in columns if name in schema.names])

    def look(part: Object) -> tuple[Object, pa.Table] | None:
        try:
            version, table = read_version(store, part, columns)
        except NotFoundError:
            return None  # pruned since it was listed
        return version, _chosen(conform(table, wanted), where)

    parts: list[Object] = []
    found: list[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64]]] = []
    with ThreadPoolExecutor(READERS, thread_name_prefix="index") as pool:
        looks = ahead(list_parts(store), lambda part: pool.submit(look, part), most=READERS)
        for version, table in filter(None, (looked for _, looked in looks)):
            if table.num_rows:
                parts.append(version)
                seconds = table["duration_s"].fill_null(0.0).to_numpy()
                found.append((table["place"].to_numpy(), _identities(table), seconds))
    places, identities, seconds = zip(*found, strict=True) if found else ((), (), ())
    return Index(
        schema,
        tuple(parts),
        np.concatenate([[0], np.cumsum([len(p) for p in places])]).astype(np.int64),
        np.concatenate([np.empty(0, np.int64), *places]),
        np.concatenate([np.empty(0, np.uint64), *identities]),
        np.concatenate([np.empty(0, np.float64), *seconds]),
    )


def _chosen(table: pa.Table, where: pc.Expression | None) -> pa.Table:
    """The rows that fulfil the condition, with their place in the part."""
    table = table.append_column("place", pa.array(np.arange(table.num_rows)))
    if where is None:
        return table
    return matching(table, where)


def _identities(table: pa.Table) -> NDArray[np.uint64]:
    """A hash for each row that is the same in every process: uint64 [num_rows]."""
    nothing = [None] * table.num_rows  # older parts have no channel
    there = table.column_names
    told = (table[c].to_pylist() if c in there else nothing for c in _IDENTITY)
    hashes = b"".join(
        hashlib.blake2b(
            f"{start_s!r} {'' if channel is None else f'{channel} '}{name}".encode(
                "utf-8", "surrogateescape"
            ),
            digest_size=8,
        ).digest()
        for name, start_s, channel in zip(*told, strict=True)
    )
    return np.frombuffer(hashes, np.uint64)


def check_columns(schema: pa.Schema, columns: Iterable[str]) -> tuple[str, ...]:
    """The columns without repetitions, if there are some and the rows have all of them.

    Raises:
        JobError: they do not, or there are none.
    """
    chosen = tuple(dict.fromkeys(columns))
    if not chosen:
        raise JobError("no columns were asked for")
    if missing := [c for c in chosen if c not in schema.names]:
        raise JobError(
            f"the rows have no column {', '.join(map(repr, missing))}: "
            f"there are {', '.join(schema.names)}"
        )
    return chosen


def read_rows(store: Store, index: Index, part: int, columns: Sequence[str]) -> pa.Table:
    """The index's rows of one part, in its order; null where an older part lacks a column.

    Where the part has been replaced since the index was made, the same rows are found in the new
    version (by file name, channel and start), with the values that they have there.

    Raises:
        ReplacedError: some of them are gone.
        DatasetError: the part cannot be read.
    """
    seen = index.parts[part]
    chosen = slice(int(index.offsets[part]), int(index.offsets[part + 1]))
    try:
        version, table = read_version(store, seen, columns)
        places = index.places[chosen]
        if version.etag != seen.etag:
            version, table = read_version(store, version, list({*columns, *_IDENTITY}))
            places = _again(_identities(table), index.identities[chosen], seen.key)
    except NotFoundError:
        raise _gone(seen.key, len(index.places[chosen])) from None
    table = conform(table, pa.schema([index.schema.field(name) for name in columns]))
    if len(places) == table.num_rows and np.array_equal(places, np.arange(len(places))):
        return table
    return table.take(places)


def _again(there: NDArray[np.uint64], wanted: NDArray[np.uint64], key: str) -> NDArray[np.int64]:
    """Where the wanted rows are among those that are there now."""
    order = np.argsort(there, kind="stable")
    at = np.searchsorted(there[order], wanted)
    at = np.minimum(at, max(0, len(there) - 1))
    found = there[order[at]] == wanted if len(there) else np.zeros(len(wanted), bool)
    if not found.all():
        raise _gone(key, int((~found).sum()))
    return np.asarray(order[at], np.int64)


def _gone(key: str, count: int) -> ReplacedError:
    return ReplacedError(
        f"{count} rows of {key} that were there when the dataset was opened are gone: open it anew"
    )
