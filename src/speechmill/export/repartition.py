"""``repartition``: a sink's rows as new Parquet files, grouped by columns, so many rows a file.

A first pass reads only those columns, and settles which rows of which part make each file. So a
file is the same whoever writes it, and when: those that are there already are not written again,
and files are shared out to threads, or to an engine's workers, by units that fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from speechmill.dataset.layout import DATA, STATE
from speechmill.dataset.reader import scan, stored_schema
from speechmill.dataset.state import sink_state
from speechmill.dataset.stated import json_object
from speechmill.errors import DatasetError, JobError, NotFoundError, StorageError
from speechmill.export.files import File, Piece, Place, Unit, groups
from speechmill.storage import Object, Store, inside
from speechmill.storage.lookalikes import check_distinct

__all__ = ["Observer", "RepartitionReport", "RunUnits", "repartition"]

PLAN_VERSION = 1  # bumped by hand when files of the same rows would differ
UNIT_BYTES = 64 * 1024**2  # of a unit's rows as they are stored
STATE_KEY = f"{STATE}/repartition.json"
STAGED = re.compile(r"\.[0-9a-f]{32}\.staged")  # what a killed writer leaves in a local folder


class Observer:
    """Who watches. Called from one thread."""

    def planned(self, rows: int, files: int, resumed: int) -> None:
        """So many rows and files are to be written; ``resumed`` files are there already."""

    def progress(self, rows: int) -> None:
        """So many rows are written."""


@dataclass(frozen=True, slots=True)
class RepartitionReport:
    """What was written. ``resumed`` files were there already, of a run that was cut short."""

    out: str
    rows: int
    files: int
    partitions: int
    resumed: int
    wall_s: float
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """Each file of the result, in order, and a digest of them and of what they are made of."""

    sink_url: str
    by: tuple[str, ...]
    rows_per_file: int
    sources: tuple[Object, ...]
    weights: tuple[float, ...]  # bytes a row of each of them, as it is stored
    files: tuple[File, ...]
    schema: pa.Schema
    digest: str


RunUnits = Callable[[Sequence[Unit], Callable[[], bool]], Iterator[int]]
"""Does units in any order, until it is told to stop; gives the rows of each one that is done, and
0 now and then."""


def repartition(
    sink: Place,
    out: Place,
    by: Sequence[str],
    *,
    run: RunUnits,
    rows_per_file: int = 10_000,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RepartitionReport:
    """Write the rows of a sink to ``data/by_<column>=<value>/…/part-00000-of-00001.parquet``.

    Columns, types and metadata are those of ``open_dataset``; rows keep its order within a file.
    The same call again goes on where it was cut short.

    ``by`` are the columns to group by: text, whole numbers or truth values. ``run`` writes the
    files: ``files.in_threads``, or ``on_dask`` of ``export.dask``.

    Raises:
        JobError: a column does not exist or cannot be grouped by, OUT and SINK overlap, or OUT
            takes two groups for one.
        DatasetError: there are no rows, or OUT holds something else.
        ReplacedError: the sink was changed meanwhile.
        StorageError: a store cannot be read or written.
    """
    started = time.monotonic()
    observer = observer or Observer()
    store, target = sink.open(), out.open()
    _check_apart(store, target)
    sink_state(store)
    schema = stored_schema(store)
    if schema is None:
        raise DatasetError(f"there are no rows in {store.url} to repartition")
    _check_columns(schema, by, rows_per_file)
    plan = _make_plan(store, schema, by, rows_per_file)
    advice = "give a bucket, or a disk that tells them apart, or another --by"
    check_distinct(target, dict.fromkeys(file.directory for file in plan.files), advice)
    there = _agree(target, plan)
    missing = [file for file in plan.files if file.key not in there]
    wanted, resumed = sum(file.rows for file in missing), len(plan.files) - len(missing)
    observer.planned(wanted, len(missing), resumed)
    rows = 0
    for done in run(_units(plan, missing, sink, out), stop):
        rows += done
        observer.progress(rows)
    stopped = rows < wanted
    if not stopped:
        _write_state(target, plan, complete=True)
        _tidy(target)
    return RepartitionReport(
        out=f"{target.url}/{DATA}",
        rows=rows,
        files=len(missing),
        partitions=len({file.directory for file in plan.files}),
        resumed=resumed,
        wall_s=time.monotonic() - started,
        stopped=stopped,
    )


def _check_apart(store: Store, target: Store) -> None:
    """That neither place lies in the other: a listing of the one would show what is the other's."""
    if inside(store.url, target.url) is not None:
        raise JobError(f"OUT ({target.url}) lies in the dataset {store.url}: give another place")
    if inside(target.url, store.url) is not None:
        raise JobError(f"the dataset {store.url} lies in OUT ({target.url}): give another place")


def _check_columns(schema: pa.Schema, by: Sequence[str], rows_per_file: int) -> None:
    if rows_per_file < 1:
        raise JobError(f"rows_per_file must be 1 or more, not {rows_per_file}")
    if len(set(by)) < len(by) or not by:
        raise JobError("by: name each column to group by, once")
    kinds = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean)
    can = [f.name for f in schema if any(of_kind(f.type) for of_kind in kinds)]
    for column in by:
        if column not in can:
            why = "cannot be grouped by" if column in schema.names else "is no column"
            raise JobError(f"by: {column!r} {why}; there are {', '.join(can)}")
        if f"by_{column}" in schema.names:
            raise JobError(f"by: there is a column by_{column}, which is the directories' key")


def _make_plan(store: Store, schema: pa.Schema, by: Sequence[str], rows_per_file: int) -> _Plan:
    """What rows of what parts come into what files: one pass over the columns ``by``."""
    sources: list[Object] = []
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # part, rows; in order
    weights: list[float] = []
    # Any column says how many rows there are, also where a part lacks those asked for.
    for part, table in scan(store, [*by, *({"file_name"} - set(by))]):
        if not table.num_rows:
            continue
        names, numbers = groups(table, by)
        for name, count in zip(names, np.bincount(numbers, minlength=len(names)), strict=True):
            found[name].append((len(sources), int(count)))
        sources.append(part)
        weights.append(part.size / table.num_rows)
    if not sources:
        raise DatasetError(f"there are no rows in {store.url} to repartition")
    files = tuple(
        file for name in sorted(found) for file in _files_of(name, found[name], rows_per_file)
    )
    made_of = [PLAN_VERSION, by, rows_per_file, [(s.key, s.etag) for s in sources]]
    digest = hashlib.sha256(json.dumps(made_of).encode() + schema.serialize().to_pybytes())
    return _Plan(
        sink_url=store.url,
        by=tuple(by),
        rows_per_file=rows_per_file,
        sources=tuple(sources),
        weights=tuple(weights),
        files=files,
        schema=schema,
        digest=digest.hexdigest()[:16],
    )


def _files_of(name: str, parts: Sequence[tuple[int, int]], rows_per_file: int) -> Iterator[File]:
    """The files of one group, whose rows are so many of each of these parts."""
    total = sum(count for _, count in parts)
    number_of_files = -(-total // rows_per_file)
    waiting, skip = list(reversed(parts)), 0
    for number in range(number_of_files):
        pieces, room = [], rows_per_file
        while room and waiting:
            source, count = waiting[-1]
            taken = min(room, count - skip)
            pieces.append(Piece(source, skip, taken))
            room, skip = room - taken, skip + taken
            if skip == count:
                waiting.pop()
                skip = 0
        key = f"{DATA}/{name}/part-{number:05d}-of-{number_of_files:05d}.parquet"
        yield File(key, name, tuple(pieces))


def _units(plan: _Plan, files: Iterable[File], sink: Place, out: Place) -> list[Unit]:
    """Files that follow one another, as many as fit into memory together."""
    bundles: list[list[File]] = []
    room = 0.0
    for file in files:
        num_bytes = sum(plan.weights[p.source] * p.count for p in file.pieces)
        if num_bytes > room or not bundles:
            bundles.append([])
            room = float(UNIT_BYTES)
        bundles[-1].append(file)
        room -= num_bytes
    schema = plan.schema.serialize().to_pybytes()
    units = []
    for bundle in bundles:
        numbers = sorted({piece.source for file in bundle for piece in file.pieces})
        sources = tuple((number, plan.sources[number]) for number in numbers)
        units.append(Unit(sink, out, plan.by, sources, tuple(bundle), schema))
    return units


def _agree(target: Store, plan: _Plan) -> set[str]:
    """Claim OUT for this plan. Returns the files that are there already."""
    try:
        there = {o.key for o in target.list() if not STAGED.fullmatch(o.key)}
    except NotFoundError:
        there = set()
    if STATE_KEY not in there:
        if there:
            raise DatasetError(
                f"{target.url} is not empty ({min(there)} is there): give an empty place"
            )
        _write_state(target, plan, complete=False)
        return set()
    state = _read_state(target)
    if state.get("plan") != plan.digest:
        raise DatasetError(
            f"{target.url} holds the rows of {state.get('sink')} by "
            f"{','.join(map(str, state.get('by', ())))}, {state.get('rows_per_file')} a file, as "
            "they were then; what is asked for now is something else, or the dataset has changed: "
            "empty it, or give another place"
        )
    return there


def _read_state(target: Store) -> dict[str, Any]:
    try:
        return json_object(target.get(STATE_KEY).data)
    except ValueError:
        raise DatasetError(
            f"{STATE_KEY} of {target.url} cannot be read: empty {target.url}"
        ) from None


def _write_state(target: Store, plan: _Plan, *, complete: bool) -> None:
    state = {
        "plan": plan.digest,
        "sink": plan.sink_url,
        "by": list(plan.by),
        "rows_per_file": plan.rows_per_file,
        "files": len(plan.files),
        "rows": sum(file.rows for file in plan.files),
        "complete": complete,
    }
    target.put(STATE_KEY, json.dumps(state, indent=1, ensure_ascii=False).encode())


def _tidy(target: Store) -> None:
    """Remove what killed writers have left beside the data."""
    with suppress(StorageError):
        for one in list(target.list()):
            if STAGED.fullmatch(one.key):
                target.delete(one.key)
