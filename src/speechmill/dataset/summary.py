"""Summary of a sink, counted in one pass over a few columns, part by part."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.layout import FAILURES
from speechmill.dataset.reader import scan
from speechmill.storage import Store

__all__ = ["FailedRecording", "Summary", "failed_recordings", "summarize"]

STAGES = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")
SLOWEST = 5  # recordings that are listed


@dataclass(frozen=True, slots=True)
class FailedRecording:
    """A recording that could not be processed: a row of the failures."""

    file_name: str
    stage: str
    error: str
    message: str
    attempts: int


@dataclass
class Summary:
    """Counts of a sink. ``folders``, ``languages``, ``flags`` and ``recipes`` count rows;
    ``slowest`` holds (seconds, file_name), slowest first."""

    rows: int = 0
    audio_s: float = 0.0
    empty: int = 0
    parts: int = 0
    num_bytes: int = 0
    folders: Counter[str] = field(default_factory=Counter)
    folder_audio_s: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    recipes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    counted = pc.value_counts(column.combine_chunks())
    named = ((one["values"], one["counts"]) for one in counted.to_pylist())
    return Counter({"(none)" if value is None else str(value): count for value, count in named})


def summarize(store: Store) -> Summary:
    """Count the rows, audio, flags and failures of a sink.

    Raises:
        StorageError: it cannot be listed or read.
        DatasetError: a part is no Parquet file.
    """
    found = Summary()
    columns = ["folder_name", "file_name", "transcription", "duration_s", "language", "flags"]
    for part, table in scan(store, [*columns, "recipe", *STAGES]):
        found.parts += 1
        found.num_bytes += part.size
        if not table.num_rows:
            continue
        found.rows += table.num_rows
        seconds = table["duration_s"].to_pylist()
        found.audio_s += sum(seconds)
        found.empty += pc.sum(pc.equal(table["transcription"], "")).as_py() or 0
        found.folders += _counts(table["folder_name"])
        for folder_name, duration_s in zip(table["folder_name"].to_pylist(), seconds, strict=True):
            found.folder_audio_s[folder_name] += duration_s
        found.languages += _counts(table["language"])
        found.flags += _counts(pa.chunked_array([pc.list_flatten(table["flags"])]).cast("string"))
        found.recipes += _counts(table["recipe"])
        costs: Counter[str] = Counter()  # all rows of a recording lie in one part
        columns_s: list[list[Any]] = [table[stage].to_pylist() for stage in STAGES]
        for name, *seconds in zip(table["file_name"].to_pylist(), *columns_s, strict=True):
            costs[name] += sum(seconds)
        slowest = ((cost, name) for name, cost in costs.items())
        found.slowest = heapq.nlargest(SLOWEST, [*found.slowest, *slowest])
    for _, table in scan(store, ["error"], FAILURES):
        if table.num_rows:
            found.failures += _counts(table["error"])
    return found


def failed_recordings(store: Store) -> list[FailedRecording]:
    """List the recordings that could not be processed, part by part.

    Raises:
        StorageError: the sink cannot be listed or read.
    """
    columns = ["file_name", "stage", "error", "message", "attempts"]
    return [
        FailedRecording(**row)
        for _, table in scan(store, columns, FAILURES)
        for row in table.to_pylist()
    ]
