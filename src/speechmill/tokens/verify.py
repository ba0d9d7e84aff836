"""``tokens verify``: tokens of a sample of rows are made anew, each row alone, and compared."""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.ahead import ahead
from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.reader import list_parts, read_columns, scan
from speechmill.dataset.state import read_recipe, sink_state
from speechmill.enrich.audio import (
    SPAN_COLUMNS,
    FetchedSpans,
    RecordingSpans,
    decoded_by,
    fetch_spans,
    recordings_of,
)
from speechmill.enrich.staging import RowKey, row_keys
from speechmill.errors import DatasetError
from speechmill.machine import WithoutRoom
from speechmill.records import number_of
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.tokenizers.base import Tokenizer
from speechmill.tokenizers.compare import mismatch
from speechmill.tokens.column import column_of, open_again

__all__ = ["VerifyObserver", "VerifyReport", "verify_tokens"]

AHEAD: Final = 4  # recordings that are fetched while one is encoded


@dataclass
class VerifyReport:
    """What ``verify_tokens`` found in the ``rows`` that it compared.

    ``differing`` is, for each codebook (or feature), the share of values that came out otherwise, 0
    to 1. ``largest`` is the largest difference of a feature; None for codes. ``worst`` are the
    recordings with the largest share. ``lost`` counts rows that could not be compared, by why.
    """

    sink: str
    column: str
    name: str
    device: str
    rows: int = 0
    frames: int = 0
    differing: tuple[float, ...] = ()
    largest: float | None = None
    worst: list[tuple[float, str]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def rate(self) -> float:
        """The share of all values that differ."""
        return sum(self.differing) / len(self.differing) if self.differing else 0.0

    @property
    def off(self) -> float:
        """How far the rows are off: the rate for codes, the largest difference for features."""
        return self.rate if self.largest is None else self.largest


class VerifyObserver:
    """Who watches a verifying. Called from one thread."""

    def planned(self, rows: int, audio_s: float) -> None:
        """So much is to be compared."""

    def progress(self, report: VerifyReport) -> None:
        """So much is done."""


def verify_tokens(
    sink: Store,
    *,
    column: str | None = None,
    sample: int = 20,
    seed: int = 0,
    model: str | None = None,
    device: str = "auto",
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    observer: VerifyObserver | None = None,
) -> VerifyReport:
    """Make the tokens of some rows anew from their recordings, each row alone, and compare.

    On CPUs of one kind none differ. On a GPU some may: this says how many.

    Args:
        sink: the dataset.
        column: which tokens, where there are several.
        sample: so many rows, drawn at random; all where there are fewer.
        seed: another one draws others.
        model: where the weights are, if not where they were.
        device: auto, cpu, cuda or cuda:1.
        source_url: where the recordings are, if not where the sink says.
        source_options: how to reach them.
        observer: who watches.

    Raises:
        DatasetError: there is no dataset, it has no tokens, or no recording of the sample is to be
            had.
        JobError: there are several columns, and none is named.
        ModelError: the weights cannot be found, or are not those that made the tokens.
        StorageError: a store cannot be reached or read.
    """
    started = time.monotonic()
    state = sink_state(sink)
    _, described = column_of(sink, column)
    recipe = read_recipe(sink, str(state["recipe"]))
    if recipe is None:
        raise DatasetError(f"the recipe {state['recipe']} of {sink.url} is not kept in it")
    choices = decoded_by(recipe, sink.url)
    tokenizer = open_again(described, model=model, device=device)
    source = open_store(source_url or state["source"], source_options)
    chosen = _Sample(sink, described["column"], recipe.id, sample, seed)
    report = VerifyReport(sink.url, described["column"], tokenizer.name, device)
    comparing = _Comparing(tokenizer, report)
    observer = observer or VerifyObserver()
    observer.planned(chosen.rows, chosen.audio_s)
    without_room = WithoutRoom[RecordingSpans]()
    fetch = partial(fetch_spans, source, choices=choices)

    def compare(fetched: FetchedSpans) -> None:
        if fetched.ready.found_no_room and without_room.takes(fetched.asked):
            return
        if fetched.lost:
            report.lost[fetched.lost] += len(fetched.asked.spans)
            report.reasons[fetched.asked.recording.file_name] = fetched.reason
            fetched.ready.release()
        else:
            comparing.add(fetched, chosen.stored)
        observer.progress(report)

    with ThreadPoolExecutor(AHEAD, thread_name_prefix="fetch") as pool:
        for _, fetched in ahead(chosen.recordings(), partial(pool.submit, fetch), most=AHEAD):
            compare(fetched)
    without_room.try_again(lambda asked: compare(fetch(asked)), stop=lambda: False)
    if not report.rows:
        why = ""
        for name, reason in list(report.reasons.items())[:1]:
            why = f" ({name}: {reason}); --source says where the recordings are"
        raise DatasetError(f"none of the sampled rows of {sink.url} could be compared{why}")
    report.wall_s = time.monotonic() - started
    return report


class _Sample:
    """Rows drawn from a sink: those whose names' hashes are the least."""

    def __init__(self, sink: Store, column: str, recipe: str, count: int, seed: int) -> None:
        self._sink, self._column = sink, column
        drawn: list[tuple[int, str, RowKey]] = []
        for part, table in scan(sink, SPAN_COLUMNS):
            rows = zip(row_keys(table), table["recipe"].to_pylist(), strict=True)
            mine = (
                (number_of(f"{seed} {row[3]!r} {_channel_of(row)}{row[0]}"), part.key, row)
                for row, made in rows
                if made == recipe
            )
            drawn = heapq.nsmallest(count, [*drawn, *mine], key=lambda one: one[:2])
        self._wanted: defaultdict[str, set[RowKey]] = defaultdict(set)
        for _, part_key, row in drawn:
            self._wanted[part_key].add(row)
        self.rows = len(drawn)
        self.audio_s = sum(row[4] - row[3] for _, _, row in drawn)
        self.stored: dict[RowKey, NDArray[Any] | None] = {}
        """The tokens of the rows that ``recordings`` has given, from the same version of them."""

    def recordings(self) -> Iterator[RecordingSpans]:
        """Their recordings, part by part."""
        for part in list_parts(self._sink):
            wanted = self._wanted.get(part.key)
            if not wanted:
                continue
            table = read_columns(self._sink, part, (*SPAN_COLUMNS, self._column))
            if self._column not in table.column_names:
                continue
            keys = row_keys(table)
            take = [i for i, key in enumerate(keys) if key in wanted]
            some = table.take(pa.array(take, pa.int64()))
            codes = tokens_to_arrays(some[self._column])
            self.stored.update(zip(row_keys(some), codes, strict=True))
            yield from recordings_of(part.key, some)


def _channel_of(row: RowKey) -> str:
    """What tells the channels of a recording apart, where each has rows; else nothing."""
    return "" if row[5] is None else f"{row[5]} "


class _Comparing:
    """Counts what differs, into a report."""

    def __init__(self, tokenizer: Tokenizer, report: VerifyReport) -> None:
        self._tokenizer, self._report = tokenizer, report
        self._differing: NDArray[np.float64] = np.zeros(0)
        if tokenizer.codebook_size is None:
            report.largest = 0.0

    def add(self, fetched: FetchedSpans, stored: Mapping[RowKey, NDArray[Any] | None]) -> None:
        """Encode the rows of a recording, each alone, and compare."""
        for i, row in enumerate(fetched.ready.rows):
            old = stored[fetched.asked.row_key(i)]
            if old is None:
                self._report.lost["no tokens"] += 1
                continue
            (new,) = self._tokenizer.encode([row.samples(self._tokenizer.sample_rate)])
            row.release()
            self._compare(fetched.asked.recording.file_name, old, new.values)
        fetched.ready.release()

    def _compare(self, name: str, old: NDArray[Any], new: NDArray[Any]) -> None:
        report = self._report
        rates = np.array(mismatch(old, new))
        frames = max(old.shape[1], new.shape[1])
        count = max(len(rates), len(self._differing))
        self._differing = _longer(self._differing, count) + _longer(rates * frames, count)
        report.rows += 1
        report.frames += frames
        report.differing = tuple((self._differing / max(1, report.frames)).tolist())
        if report.largest is not None and old.shape != new.shape:
            report.largest = float("inf")
        elif report.largest is not None and old.size:
            difference = np.abs(old.astype(np.float64) - new.astype(np.float64))
            report.largest = max(report.largest, float(difference.max()))
        if rates.any():
            report.worst = heapq.nlargest(5, [*report.worst, (float(rates.mean()), name)])


def _longer(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.concatenate([values, np.zeros(count - len(values))])
