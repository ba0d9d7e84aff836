"""Exactly one row: how rows and failures come into a part, and leave it.

All rows of a recording lie in one part, and a part is one object that is replaced as a whole by
compare-and-swap (``swap.py``). So at every moment each recording that was done is there once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.dataset.conform import conform
from speechmill.dataset.known import check_rows, check_schema
from speechmill.dataset.layout import data_key, failures_key
from speechmill.dataset.measured import with_measures_of
from speechmill.dataset.native import file_of
from speechmill.dataset.schema import (
    FAILURE_SCHEMA,
    failures_to_table,
    is_sealed,
    sort_rows,
    to_parquet,
    with_seal,
)
from speechmill.dataset.swap import stored, update
from speechmill.errors import DatasetError
from speechmill.records import Failure, Part, Recording
from speechmill.storage import Store

__all__ = [
    "Committed",
    "Version",
    "commit",
    "merge_rows",
    "read_part",
    "remove",
    "unreadable",
    "versions",
]


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of a recording a row is made of, and how. ``modified_us``: µs since 1970."""

    size: int
    etag: str
    modified_us: int
    recipe: str

    @staticmethod
    def of(recording: Recording, recipe: str) -> Version:
        """The version that a row of this recording, made by this recipe, would have."""
        return Version(recording.size, recording.etag, recording.modified_us, recipe)

    def newer(self, other: Version) -> bool:
        """Whether the bytes are of a later time than the other's."""
        return not self.same_source(other) and self.modified_us > other.modified_us

    def same_source(self, other: Version) -> bool:
        """Whether both are of the same bytes in the source."""
        return (self.size, self.etag) == (other.size, other.etag)


@dataclass(frozen=True, slots=True)
class Committed:
    """What came of a commit.

    ``num_bytes`` were written, as rows. ``audio_s`` and ``num_rows`` are what the part holds now (0
    where nothing was to be written). ``refused`` are recordings that a sealed part does not take:
    they belong to another one by now.
    """

    conflicts: int = 0
    num_bytes: int = 0
    audio_s: float = 0.0
    num_rows: int = 0
    refused: frozenset[str] = frozenset()


def versions(table: pa.Table) -> dict[str, Version]:
    """The version of each recording in a part, by file name."""
    modified_us = table["source_modified"].cast(pa.int64())
    columns = (table["source_size"], table["source_etag"], modified_us, table["recipe"])
    found = map(Version, *(column.to_pylist() for column in columns))
    return dict(zip(table["file_name"].to_pylist(), found, strict=True))


def unreadable(key: str, error: Exception) -> DatasetError:
    """What to say of a part that is no Parquet file, or is damaged."""
    return DatasetError(
        f"{key} of the sink cannot be read ({error}); "
        "remove the file, and the next build makes it anew"
    )


def read_part(key: str, data: bytes) -> pa.Table:
    """The table in a part file's bytes.

    Raises:
        DatasetError: it is no Parquet file, a page's checksum is wrong, or it is no part that this
            Speechmill knows.
    """
    try:
        table = pq.read_table(file_of(data), partitioning=None, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(key, error) from None
    check_schema(key, table.schema)
    check_rows(key, table)
    return table


def merge_rows(
    old: pa.Table | None,
    new: pa.Table,
    *,
    replaces: Mapping[str, str],
    is_current: Callable[[], bool],
) -> pa.Table | None:
    """What a part holds after ``new`` has come; None where that changes nothing.

    All rows of a recording stand or fall together. Rows of the same bytes and recipe stay as they
    are. The same bytes made by another recipe are replaced if ``is_current()`` says that the new
    rows' recipe is the sink's. Another version of the bytes is replaced unless it is newer, or
    when it is the very one that ``replaces`` (etag by file name) says was to be replaced. The
    columns are those of the new rows, or the old ones if the sink's recipe has moved on meanwhile;
    and the measures of both.
    A sealed part takes no recording that it does not have.
    """
    there = versions(old) if old is not None else {}
    sealed = old is not None and is_sealed(old.schema)
    coming = versions(new)

    def wins(name: str, mine: Version) -> bool:
        theirs = there.get(name)
        if theirs is None:
            return not sealed
        if mine.same_source(theirs):
            return mine.recipe != theirs.recipe and is_current()
        return mine.modified_us > theirs.modified_us or replaces.get(name) == theirs.etag

    winners = [name for name, version in coming.items() if wins(name, version)]
    if not winners:
        return None
    added = new.filter(pc.is_in(new["file_name"], pa.array(winners, pa.string())))
    if old is None:
        return sort_rows(added)
    kept = _without(old, winners)
    same = old.schema.equals(new.schema)
    schema = new.schema if same or not kept.num_rows or is_current() else old.schema
    schema = with_measures_of(with_measures_of(schema, old.schema), new.schema)
    if sealed:
        schema = with_seal(schema)
    return sort_rows(pa.concat_tables([conform(kept, schema), conform(added, schema)]))


def _without(table: pa.Table, names: Collection[str]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["file_name"], pa.array(list(names), pa.string()))))


def commit(
    store: Store,
    part: Part,
    rows: pa.Table,
    failures: Sequence[Failure],
    *,
    recipe: str,
    replaces: Mapping[str, str],
    is_current: Callable[[], bool],
) -> Committed:
    """Commit to a part what became of some of its recordings: rows and failures.

    Rows come before their recordings' old failures go, and failures come before the rows of
    versions that they put an end to go: whenever it is cut short, each recording is accounted
    for, and the next build takes away what is left over.

    Raises:
        ConflictError: something else kept on changing the part.
        UnavailableError: the store stays down.
    """
    committed = Committed()
    conflicts = 0
    if rows.num_rows:
        committed = _add_rows(store, data_key(part), rows, replaces, is_current)
        done = versions(rows)
        remove(
            store,
            failures_key(part),
            lambda name, v: (
                name in done
                and name not in committed.refused
                and (not v.newer(done[name]) or replaces.get(name) == v.etag)
            ),
        )
    if failures:
        conflicts = _add_failures(store, failures_key(part), failures, recipe)
        _settle(store, part, failures)
    return replace(committed, conflicts=committed.conflicts + conflicts)


def _add_rows(
    store: Store,
    key: str,
    rows: pa.Table,
    replaces: Mapping[str, str],
    is_current: Callable[[], bool],
) -> Committed:
    committed = Committed()

    def change(data: bytes | None) -> bytes | None:
        nonlocal committed
        old = read_part(key, data) if data is not None else None
        refused = frozenset[str]()
        if old is not None and is_sealed(old.schema):
            refused = frozenset(versions(rows).keys() - versions(old).keys())
        committed = Committed(refused=refused)
        merged = merge_rows(old, rows, replaces=replaces, is_current=is_current)
        if merged is None:
            return None
        new = to_parquet(merged)
        audio_s = float(pc.sum(merged["duration_s"]).as_py() or 0.0)
        committed = Committed(0, len(new), audio_s, merged.num_rows, refused)
        return new

    conflicts = update(store, key, change)
    return replace(committed, conflicts=conflicts)


def _add_failures(store: Store, key: str, failures: Sequence[Failure], recipe: str) -> int:
    """At most one a recording. Attempts at the same bytes are counted on."""
    now_us = time.time_ns() // 1000

    def change(data: bytes | None) -> bytes | None:
        old = read_part(key, data) if data is not None else FAILURE_SCHEMA.empty_table()
        known = versions(old)
        names = old["file_name"].to_pylist()
        counts = dict(zip(names, old["attempts"].to_pylist(), strict=True))
        times = dict(zip(names, old["failed_at"].cast(pa.int64()).to_pylist(), strict=True))
        attempts: dict[str, int] = {}
        news = []
        for failure in failures:
            name, mine = failure.recording.file_name, Version.of(failure.recording, recipe)
            seen = known.get(name)
            if times.get(name) == now_us:  # ours already: the reply to the put was lost
                continue
            if seen is not None and seen.same_source(mine):
                attempts[name] = counts[name] + 1
            news.append(failure)
        if not news:
            return None
        table = failures_to_table(news, recipe, attempts, now_us)
        kept = _without(old, [f.recording.file_name for f in news])
        return to_parquet(sort_rows(pa.concat_tables([kept, table])))

    return update(store, key, change)


def _settle(store: Store, part: Part, failures: Sequence[Failure]) -> None:
    """Leave no failure beside a row: a row of the same bytes, or of newer ones, takes the failure
    away; a recording that can no longer be decoded takes its older rows away."""
    failed = {f.recording.file_name: f for f in failures}
    if (data := stored(store, data_key(part))) is None:
        return
    there = versions(read_part(data_key(part), data))
    outlived, outdated = set(), {}
    for name, failure in failed.items():
        if (row := there.get(name)) is None:
            continue
        mine = Version.of(failure.recording, row.recipe)
        planned = failure.recording.replaces == row.etag  # restored, so older than its row
        if row.same_source(mine) or (row.newer(mine) and not planned):
            outlived.add(name)
        elif failure.stage == "decode":
            outdated[name] = row
    if outdated:
        remove(store, data_key(part), lambda name, v: outdated.get(name) == v)
    if outlived:
        remove(store, failures_key(part), lambda name, _: name in outlived)


def remove(store: Store, key: str, doomed: Callable[[str, Version], bool]) -> int:
    """Remove the recordings that ``doomed`` names from the part at ``key``, rows or failures.

    Returns how many recordings it were. A part is never deleted, so readers find it where it was.
    """
    removed = 0

    def change(data: bytes | None) -> bytes | None:
        nonlocal removed
        removed = 0
        if data is None:
            return None
        old = read_part(key, data)
        names = [name for name, version in versions(old).items() if doomed(name, version)]
        removed = len(names)
        return to_parquet(_without(old, names)) if names else None

    update(store, key, change)
    return removed
