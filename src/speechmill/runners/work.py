"""What a worker of a cluster is given, and what it does with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Final

import pyarrow as pa

from speechmill.dataset.commit import Version, versions
from speechmill.dataset.layout import data_key
from speechmill.dataset.reader import list_parts, read_columns
from speechmill.dataset.schema import IDENTITY_COLUMNS, row_schema
from speechmill.enrich import shards
from speechmill.enrich.shards import Enrichment, PartsShard
from speechmill.errors import DatasetError, WorkerDiedError
from speechmill.machine import limit_cores
from speechmill.pipeline.resources import open_resources
from speechmill.pipeline.shard import process_shard
from speechmill.pipeline.suspects import give_up
from speechmill.records import Part, Recording, RecordingDone, Shard, ShardReport
from speechmill.runners.base import AnyJob, AnyShard
from speechmill.storage import Store

__all__ = ["Task", "halves", "keep_memory", "run_task", "set_aside", "what_is_left"]

# What glibc's own, moving thresholds end at: mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 64 * 2**20), (-3, 32 * 2**20)

_COLUMNS: Final = pa.schema(
    [row_schema(()).field(name) for name in (*IDENTITY_COLUMNS, "duration_s")]
)


@dataclass(frozen=True, slots=True)
class Task:
    """A shard for a worker: recordings of a build, or parts of an enrichment.

    ``recipe`` is what a build's rows must be made by; ``attempt`` counts from 0; ``cores`` is the
    worker's share of its machine, None for all that it may use.
    """

    job: AnyJob
    shard: AnyShard
    recipe: str
    attempt: int = 0
    cores: int | None = None


def run_task(task: Task, *, stop: Callable[[], bool] = lambda: False) -> ShardReport:
    """Do a task, in the process that it is called in. Models stay loaded for the next one.

    Once ``stop()`` is true, what is done is committed and the rest left.

    Raises:
        SpeechmillError: see ``process_shard``.
        DatasetError: this worker would make other rows than the one that planned them.
    """
    if task.cores is not None:
        limit_cores(task.cores)
    if isinstance(task.job, Enrichment) or isinstance(task.shard, PartsShard):
        return shards.enrich_shard(*_enrichment(task), stop=stop)
    tools = open_resources(task.job)
    if tools.recipe.id != task.recipe:
        raise DatasetError(
            f"a worker would make rows by the recipe {tools.recipe.id}, the build has "
            f"{task.recipe}: its Speechmill, its model's files or what its device supports are "
            "others than where the build was started; make them the same, and give --compute-type "
            "one that both support"
        )
    if not task.attempt:
        return process_shard(task.job, task.shard, stop=stop)
    left, done = what_is_left(tools.sink, task.shard, task.recipe)
    report = process_shard(task.job, left, stop=stop)
    return replace(report, done=(*done, *report.done))


def _enrichment(task: Task) -> tuple[Enrichment, PartsShard]:
    if isinstance(task.job, Enrichment) and isinstance(task.shard, PartsShard):
        return task.job, task.shard
    raise TypeError("a task is of recordings for a build, or of parts for an enrichment")


@cache
def keep_memory() -> None:
    """Let this process keep what it frees, as any other does.

    Dask starts its workers, and by inheritance whatever its process starts after them, with a
    MALLOC_TRIM_THRESHOLD_ of 64 KiB. A model frees buffers of megabytes all the time; each would be
    given back to the system and asked for again, which doubles the processor time of its work.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        with suppress(AttributeError):  # a C library that has no such setting
            for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
                ctypes.CDLL(None).mallopt(parameter, value)


def what_is_left(sink: Store, shard: Shard, recipe: str) -> tuple[Shard, tuple[RecordingDone, ...]]:
    """What a shard still lacks, and what a worker that died had committed of it."""
    there = {o.key: o for o in list_parts(sink)}
    parts: list[tuple[Part, tuple[Recording, ...]]] = []
    done: list[RecordingDone] = []
    for part, recordings in shard.parts:
        old = there.get(data_key(part))
        table = read_columns(sink, old, _COLUMNS.names) if old else _COLUMNS.empty_table()
        rows = versions(table)
        finished = {
            r.file_name
            for r in recordings
            if (row := rows.get(r.file_name)) is not None
            and row.same_source(wanted := Version.of(r, recipe))
            and row.recipe == wanted.recipe
        }
        done += [d for d in _counted(table) if d.file_name in finished]
        if left := tuple(r for r in recordings if r.file_name not in finished):
            parts.append((part, left))
    return Shard(shard.index, parts), tuple(done)


def _counted(table: pa.Table) -> list[RecordingDone]:
    """A part's recordings: their rows, seconds and bytes."""
    grouped = table.group_by("file_name", use_threads=False).aggregate(
        [("recipe", "count"), ("duration_s", "sum"), ("source_size", "max")]
    )
    return [
        RecordingDone(
            row["file_name"],
            row["source_size_max"],
            duration_s=row["duration_s_sum"],
            num_rows=row["recipe_count"],
        )
        for row in grouped.to_pylist()
    ]


def halves(task: Task) -> Sequence[Task]:
    """Two tasks that do a shard together, each for one more worker to try; none where it has one
    recording only."""
    if isinstance(task.job, Enrichment) or isinstance(task.shard, PartsShard):
        found: Sequence[AnyShard] = shards.halves(*_enrichment(task))
    else:
        found = _halves(task.shard)
    return [replace(task, shard=shard, attempt=max(1, task.attempt - 1)) for shard in found]


def _halves(shard: Shard) -> Sequence[Shard]:
    if shard.num_recordings < 2:
        return ()
    items = [(part, recording) for part, some in shard.parts for recording in some]
    middle = len(items) // 2
    return [
        Shard(
            shard.index,
            [(part, [r for _, r in some]) for part, some in groupby(half, itemgetter(0))],
        )
        for half in (items[:middle], items[middle:])
    ]


def set_aside(task: Task, error: WorkerDiedError) -> ShardReport:
    """Give up what keeps killing its workers: commit failures for what a build lacks of it.

    An enrichment writes none: its rows are there, and the next command tries them again.
    """
    message = f"{task.attempt} workers died while they worked on it; the last: {error}"
    if isinstance(task.job, Enrichment) or isinstance(task.shard, PartsShard):
        _, shard_of_parts = _enrichment(task)
        return shards.set_aside(shard_of_parts, message)
    tools = open_resources(task.job)
    shard, survivors = what_is_left(tools.sink, task.shard, task.recipe)
    done = list(survivors)
    for part, recordings in shard.parts:
        done += [
            RecordingDone(f.recording.file_name, f.recording.size, failure=f)
            for f in give_up(tools, part, recordings, message)
        ]
    return ShardReport(shard.index, tuple(done))
