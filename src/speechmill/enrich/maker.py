"""Making the tokens of rows that are there already, and putting them beside the data."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.reader import read_columns, scan
from speechmill.dataset.schema import codes_to_array
from speechmill.enrich.audio import SPAN_COLUMNS, Kept, Retaken, kept_recordings, retake
from speechmill.enrich.staging import Addition, RowKey, Staging, row_keys, staged_table
from speechmill.errors import ModelError, NotFoundError, SpeechmillError
from speechmill.pipeline.tokenize import SampleCheck, tokenize
from speechmill.records import Codes
from speechmill.storage import Object, Store

__all__ = ["AddObserver", "AddReport", "Look", "Maker"]

STAGE_EVERY_S: Final = 60.0  # what is made is put beside the data so often, also within a part
FETCHERS: Final = 16
MAX_AHEAD_S: Final = 600.0  # audio on its way to the tokenizer, unless one recording is longer
MAX_AHEAD: Final = 64  # recordings, likewise
CALL_S: Final = 120.0  # audio that the tokenizer is given in one call
GROUPS: Final = 2  # groups that it is given at the same time, so that it never waits
MODEL_ERRORS: Final = 16  # in a row: that is not the recordings' fault
NAMED: Final = 1_000  # recordings without tokens that the report names


@dataclass
class AddReport:
    """What ``add_tokens`` did. Durations in seconds.

    ``rows`` have been made; ``resumed`` lay ready from a command that was cut short; ``already``
    had their tokens. ``lost`` counts the rows that have none, by why: gone from the source,
    changed there, or failed; ``reasons`` says for some, by file name. Rows of ``other`` recipes
    were left alone: they wait for a build to replace them.
    """

    sink: str
    column: str
    recipe: str
    rows: int = 0
    resumed: int = 0
    already: int = 0
    other: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    tokenize_s: float = 0.0
    parts: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    mismatch: tuple[float, ...] = ()
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether every row of the dataset's recipe has its tokens."""
        return not (self.lost or self.stopped)


class AddObserver(Protocol):
    """Who watches an adding. Called from one thread."""

    def planned(self, rows: int, audio_s: float, resumed: int) -> None:
        """So many rows are to be made; so many more lie ready from before."""

    def progress(self, report: AddReport) -> None:
        """So much is made. Called often."""

    def merging(self, done: int, total: int) -> None:
        """So many of the parts have their tokens."""


@dataclass
class Look:
    """What a look at the sink has found: parts with rows that are to be made, how many ``rows``
    and seconds of audio; rows that lie ``staged``; and rows of the recipe before (``base``), of the
    new one (``done``) and of ``other`` ones."""

    parts: list[Object] = field(default_factory=list)
    rows: int = 0
    audio_s: float = 0.0
    staged: int = 0
    base: int = 0
    done: int = 0
    other: int = 0


class Maker:
    """Makes the tokens of an addition; ``report`` is told."""

    def __init__(
        self,
        sink: Store,
        source: Store,
        addition: Addition,
        staging: Staging,
        report: AddReport,
        *,
        keep_damaged: bool,
    ) -> None:
        self.sink, self.source, self.addition, self.staging = sink, source, addition, staging
        self.report, self.keep_damaged = report, keep_damaged
        self.sample = SampleCheck([addition.tokenizer])
        self.given_up: dict[str, str] = {}
        self.model_errors = 0
        self.missing: dict[str, int] = {}  # recordings of a part that are still to come
        self.made: dict[str, list[tuple[RowKey, Codes]]] = {}  # and rows that are to be staged
        self.staged_at = time.monotonic()

    def look(self) -> Look:
        """Count the rows, and find the parts that lack tokens which are not made yet."""
        found = Look()
        staged = set(self.staging.keys())
        for part, table in scan(self.sink, SPAN_COLUMNS):
            recipes = Counter(table["recipe"].to_pylist())
            base = recipes.pop(self.addition.base, 0)
            done = recipes.pop(self.addition.target.id, 0)
            found.base, found.done = found.base + base, found.done + done
            found.other += recipes.total()
            if not base:
                continue
            rows = self._lacking(part.key, table, staged)
            found.staged += base - self._count_given_up(table) - rows.num_rows
            if rows.num_rows:
                found.parts.append(part)
                found.rows += rows.num_rows
                lengths = pc.sum(pc.subtract(rows["end_s"], rows["start_s"]))
                found.audio_s += lengths.as_py()
        return found

    def _lacking(self, part_key: str, table: pa.Table, staged: set[str]) -> pa.Table:
        """The rows of a part that are to be made."""
        there: set[RowKey] = set()
        if self.staging.key(part_key) in staged:
            made = self.staging.read(part_key)
            there = set(row_keys(made)) if made is not None else there
        take = [
            i
            for i, (key, recipe) in enumerate(
                zip(row_keys(table), table["recipe"].to_pylist(), strict=True)
            )
            if recipe == self.addition.base and key not in there and key[0] not in self.given_up
        ]
        return table.take(pa.array(take, pa.int64()))

    def _count_given_up(self, table: pa.Table) -> int:
        rows = zip(table["file_name"].to_pylist(), table["recipe"].to_pylist(), strict=True)
        return sum(name in self.given_up and r == self.addition.base for name, r in rows)

    def _recordings(self, parts: list[Object]) -> Iterator[Kept]:
        """The recordings of the rows that are to be made, part by part."""
        staged = set(self.staging.keys())
        for part in parts:
            try:
                table = read_columns(self.sink, part, SPAN_COLUMNS)
            except NotFoundError:
                continue
            kept = list(kept_recordings(part.key, self._lacking(part.key, table, staged)))
            if kept:
                self.missing[part.key] = len(kept)
                self.made[part.key] = []
            yield from kept

    def make(self, parts: list[Object], observer: AddObserver, stop: Callable[[], bool]) -> None:
        """Make the tokens of these parts, and put them beside the data, also when it ends early."""
        fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        encoders = ThreadPoolExecutor(GROUPS, thread_name_prefix="tokenize")
        encoding: deque[tuple[list[Retaken], Future[float]]] = deque()
        try:
            for group in _grouped(self._retaken(parts, fetchers)):
                while len(encoding) >= GROUPS:
                    self._finish(*encoding.popleft())
                    observer.progress(self.report)
                if stop():
                    break
                encoding.append((group, encoders.submit(self._encode, group)))
            while encoding:
                self._finish(*encoding.popleft())
                observer.progress(self.report)
        except BaseException:
            with suppress(SpeechmillError):
                self._stage(list(self.made))
            raise
        finally:
            for pool in (fetchers, encoders):
                pool.shutdown(wait=False, cancel_futures=True)
        self._stage(list(self.made))

    def _retaken(self, parts: list[Object], pool: ThreadPoolExecutor) -> Iterator[Retaken]:
        """Recordings with their audio, in order; so many are on their way that the tokenizer does
        not wait."""
        flying: deque[tuple[float, Future[Retaken]]] = deque()
        flying_s = 0.0
        for kept in self._recordings(parts):
            while flying and (len(flying) >= MAX_AHEAD or flying_s + kept.length_s > MAX_AHEAD_S):
                seconds, future = flying.popleft()
                flying_s -= seconds
                yield future.result()
            task = pool.submit(retake, self.source, kept, keep_damaged=self.keep_damaged)
            flying.append((kept.length_s, task))
            flying_s += kept.length_s
        while flying:
            yield flying.popleft()[1].result()

    def _encode(self, group: list[Retaken]) -> float:
        """Encode the rows of a group. Returns the seconds it took."""
        started = time.perf_counter()
        rows = [row for taken in group for row in taken.ready.rows if not taken.lost]
        calls: list[list[Any]] = []
        seconds = 0.0
        for row in rows:
            if not calls or seconds + row.duration_s > CALL_S:
                calls.append([])
                seconds = 0.0
            calls[-1].append(row)
            seconds += row.duration_s
        for call in calls:
            tokenize(self.addition.tokenizer, 0, call)
            self.sample.check(call)
            for row in call:
                row.release()
        for taken in group:
            taken.ready.release()
        return time.perf_counter() - started

    def _finish(self, group: list[Retaken], work: Future[float]) -> None:
        """Wait for a group, and keep what came of it."""
        report = self.report
        report.tokenize_s += work.result()
        report.mismatch = self.sample.rates.get(self.addition.tokenizer.name, ())
        complete = []
        for taken in group:
            part_key = taken.kept.part_key
            self.missing[part_key] -= 1
            if not self.missing[part_key]:
                complete.append(part_key)
            if taken.lost:
                self._give_up(taken)
                continue
            self.model_errors = 0
            for i, row in enumerate(taken.ready.rows):
                self.made[part_key].append((taken.kept.row_key(i), row.codes[0]))
            report.rows += len(taken.ready.rows)
            report.audio_s += taken.kept.audio_s
        if time.monotonic() - self.staged_at > STAGE_EVERY_S:
            complete = list(self.made)
        self._stage(complete)

    def _give_up(self, taken: Retaken) -> None:
        name, failure = taken.kept.recording.file_name, taken.ready.failure
        self.given_up[name] = taken.lost
        self.report.lost[taken.lost] += len(taken.kept.spans)
        if len(self.report.reasons) < NAMED:
            self.report.reasons[name] = taken.reason
        if failure and failure.error == ModelError.__name__:
            self.model_errors += 1
            if self.model_errors >= MODEL_ERRORS:
                raise ModelError(failure.message)

    def _stage(self, part_keys: list[str]) -> None:
        """Put what was made for these parts beside the data."""
        for part_key in part_keys:
            made = self.made[part_key]
            if made:
                codes = codes_to_array([c for _, c in made], self.addition.of_type)
                keys = [key for key, _ in made]
                self.staging.add(
                    part_key,
                    staged_table(keys, self.addition.column, codes, self.report.mismatch),
                )
            self.made[part_key] = []
            if not self.missing[part_key]:
                del self.made[part_key], self.missing[part_key]
        if part_keys:
            self.staged_at = time.monotonic()


def _grouped(recordings: Iterator[Retaken]) -> Iterator[list[Retaken]]:
    """Together until there is enough for a call."""
    group: list[Retaken] = []
    seconds = 0.0
    for taken in recordings:
        group.append(taken)
        seconds += taken.kept.audio_s
        if seconds >= CALL_S or len(group) >= MAX_AHEAD:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group
