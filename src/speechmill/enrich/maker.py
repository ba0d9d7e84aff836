"""Making what rows lack, and staging it: the audio is fetched and cut once for all additions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from speechmill.ahead import ahead, together
from speechmill.dataset.reader import read_columns
from speechmill.enrich.audio import FetchedSpans, RecordingSpans, fetch_spans, recordings_of
from speechmill.enrich.base import Addition
from speechmill.enrich.lookup import GivenUp, columns_to_look_at, lacking_of
from speechmill.enrich.staging import RowKey, staged_table
from speechmill.errors import (
    DatasetError,
    ModelError,
    NoRoomError,
    NotFoundError,
    SpeechmillError,
    UnavailableError,
)
from speechmill.machine import WithoutRoom
from speechmill.pipeline.intake import Choices, ReadyRow
from speechmill.pipeline.isolate import Breaker, all_or_each
from speechmill.storage import Object, Store

__all__ = ["Maker", "Outcome"]

STAGE_EVERY_S: Final = 60.0
"""What is made is put beside the data so often, also within a part: a kill loses no more."""
FETCHERS: Final = 16
MAX_AHEAD_S: Final = 600.0
"""Audio on its way, so that memory is bounded, unless one recording is longer."""
MAX_AHEAD: Final = 64
"""Recordings on their way, likewise."""
CALL_S: Final = 120.0
"""Audio that an addition is given in one call."""
GROUPS: Final = 2
"""Groups that are computed at the same time, so that one is ready when another ends."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recording. ``audio_s`` were computed; ``num_rows`` have all that they
    lacked; the ``lost_rows`` have not, and ``lost`` (``gone``, ``changed`` or ``failed``) and
    ``reason`` say why. ``given_up`` are the numbers of the additions that can make nothing of
    it."""

    file_name: str
    audio_s: float = 0.0
    num_rows: int = 0
    lost_rows: int = 0
    lost: str = ""
    reason: str = ""
    given_up: tuple[int, ...] = ()


@dataclass(slots=True)
class _Computed:
    """What was computed of a recording's rows: their values by addition, and errors likewise."""

    fetched: FetchedSpans
    values: list[dict[RowKey, tuple[Any, ...]]]
    errors: dict[int, Exception] = field(default_factory=dict)

    @property
    def found_no_room(self) -> bool:
        """Whether something failed only because the temporary folder had no room at the time."""
        failed = any(isinstance(error, NoRoomError) for error in self.errors.values())
        return failed or self.fetched.ready.found_no_room


@dataclass(slots=True)
class _PartMade:
    """What is made of a part and not staged yet, by addition; and recordings still to come."""

    keys: tuple[frozenset[RowKey], ...]
    missing: int
    made: list[list[tuple[RowKey, tuple[Any, ...]]]]


class Maker:
    """Makes what the rows of some parts lack, and stages it.

    ``choices``: how the recordings were decoded that became rows.
    """

    def __init__(
        self, sink: Store, source: Store, additions: Sequence[Addition], choices: Choices
    ) -> None:
        self.sink, self.source, self.additions = sink, source, additions
        self.choices = choices
        self.compute_s = [0.0] * len(additions)
        self._row_columns = tuple(dict.fromkeys(c for a in additions for c in a.row_columns))
        self._breakers = [Breaker() for _ in additions]
        self._parts: dict[str, _PartMade] = {}
        self._staged_at = time.monotonic()
        self._without_room = WithoutRoom[RecordingSpans]()

    def make(
        self,
        parts: Iterable[Object],
        given_up: GivenUp,
        stop: Callable[[], bool],
        only: Collection[str] = (),
    ) -> Iterator[Outcome]:
        """Make what parts lack, or ``only`` these recordings. Yields what became of each.

        One that finds no room for its temporary files is tried again at the end, alone. What is
        made is staged also when it ends early: once ``stop()`` is true, or by an error.

        Raises:
            UnavailableError: the source as a whole is down or gone, or the sink is.
            ModelError: an engine fails again and again.
        """
        fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        computers = ThreadPoolExecutor(GROUPS, thread_name_prefix="compute")
        groups = _grouped(self._fetched(self.asked(parts, given_up, only), fetchers))
        self._without_room = WithoutRoom()
        try:
            computing = ahead(groups, lambda g: computers.submit(self._compute, g), most=GROUPS)
            for _, computed in computing:
                yield from self._keep_all(computed)
                del computed  # errors hold the frames that they come from, and these audio
                self._stage_some()
                if stop():
                    break
            else:
                yield from self._with_room(stop)
        except BaseException:
            with suppress(SpeechmillError):
                self._stage(list(self._parts))
            raise
        finally:
            for pool in (fetchers, computers):
                pool.shutdown(wait=False, cancel_futures=True)
        self._stage(list(self._parts))

    def _with_room(self, stop: Callable[[], bool]) -> list[Outcome]:
        """Make what is lacked by recordings that found no room, one by one."""
        outcomes: list[Outcome] = []

        def again(asked: RecordingSpans) -> None:
            outcomes.extend(self._keep_all(self._compute([self._fetch(asked)])))

        self._without_room.try_again(again, stop)
        return outcomes

    def _fetch(self, asked: RecordingSpans) -> FetchedSpans:
        return fetch_spans(self.source, asked, self.choices)

    def _fetched(
        self, recordings: Iterable[RecordingSpans], pool: ThreadPoolExecutor
    ) -> Iterator[FetchedSpans]:
        """Recordings with their audio, in order, some of them ahead."""
        for _, fetched in ahead(
            recordings,
            lambda asked: pool.submit(self._fetch, asked),
            most=MAX_AHEAD,
            cost=lambda asked: asked.length_s,
            most_cost=MAX_AHEAD_S,
        ):
            yield fetched

    def asked(
        self, parts: Iterable[Object], given_up: GivenUp, only: Collection[str] = ()
    ) -> Iterator[RecordingSpans]:
        """The recordings of the rows that lack something, part by part; see ``make``."""
        columns = [*columns_to_look_at(self.additions), *self._row_columns]
        for part in parts:
            try:
                table = read_columns(self.sink, part, list(dict.fromkeys(columns)))
            except NotFoundError:
                continue
            lacking = lacking_of(part.key, table, self.additions, None, given_up)
            asked = list(recordings_of(part.key, lacking.rows, self._row_columns))
            if only:
                asked = [one for one in asked if one.recording.file_name in only]
            if asked:
                nothing: list[list[tuple[RowKey, tuple[Any, ...]]]] = [[] for _ in self.additions]
                self._parts[part.key] = _PartMade(lacking.keys, len(asked), nothing)
            yield from asked

    def _compute(self, group: Sequence[FetchedSpans]) -> list[_Computed]:
        """Make the values of a group's rows, addition by addition."""
        computed = [_Computed(fetched, [{} for _ in self.additions]) for fetched in group]
        for number in range(len(self.additions)):
            started = time.perf_counter()
            for call in self._calls(number, computed):
                self._compute_call(number, call)
            self.compute_s[number] += time.perf_counter() - started
        for one in computed:
            one.fetched.ready.release()
        return computed

    def _calls(self, number: int, computed: Sequence[_Computed]) -> Iterator[list[_Row]]:
        """The rows that an addition is to be made for, together until it is enough for a call."""
        wanted: list[_Row] = []
        for one in computed:
            asked = one.fetched.asked
            keys = self._parts[asked.part_key].keys[number]
            wanted += (
                _Row(one, row, asked.row_key(i), asked.columns[i])
                for i, row in enumerate([] if one.fetched.lost else one.fetched.ready.rows)
                if asked.row_key(i) in keys
            )
        return together(wanted, lambda row: row.ready.duration_s, CALL_S)

    def _compute_call(self, number: int, call: list[_Row]) -> None:
        addition, breaker = self.additions[number], self._breakers[number]

        def compute(rows: Sequence[_Row]) -> None:
            values = addition.compute([r.ready for r in rows], [r.columns for r in rows])
            breaker.worked()
            for row, some in zip(rows, values, strict=True):
                if all(value is None for value in some):  # it would count as not made, for ever
                    row.of.errors.setdefault(number, DatasetError(f"{addition.name} gave no value"))
                row.of.values[number][row.key] = some

        def failed(row: _Row, error: Exception) -> None:
            if isinstance(error, UnavailableError):
                raise error
            row.of.errors.setdefault(number, error)
            if isinstance(error, ModelError) and breaker.failed():
                raise error

        all_or_each(call, compute, failed)
        for row in call:
            row.ready.release()

    def _keep_all(self, computed: Iterable[_Computed]) -> Iterator[Outcome]:
        """Keep what was made, but of recordings that are to be tried again."""
        for one in computed:
            if not (one.found_no_room and self._without_room.takes(one.fetched.asked)):
                yield self._keep(one)

    def _keep(self, computed: _Computed) -> Outcome:
        """Keep what was made of a recording until it is staged."""
        fetched = computed.fetched
        asked = fetched.asked
        name, part = asked.recording.file_name, self._parts[asked.part_key]
        part.missing -= 1
        if fetched.lost:
            everything = tuple(range(len(self.additions)))
            return Outcome(name, 0.0, 0, len(asked.spans), fetched.lost, fetched.reason, everything)
        for number, values in enumerate(computed.values):
            if number not in computed.errors:
                part.made[number] += values.items()
        if not computed.errors:
            return Outcome(name, asked.audio_s, len(asked.spans))
        error = next(iter(computed.errors.values()))
        missed = frozenset[RowKey]().union(*(part.keys[number] for number in computed.errors))
        lost = sum(asked.row_key(i) in missed for i in range(len(asked.spans)))
        return Outcome(
            name,
            asked.audio_s,
            len(asked.spans) - lost,
            lost,
            "failed",
            f"{type(error).__name__}: {error}",
            tuple(computed.errors),
        )

    def _stage_some(self) -> None:
        """Stage the parts that are done, or all when it is time."""
        if time.monotonic() - self._staged_at > STAGE_EVERY_S:
            self._stage(list(self._parts))
        else:
            self._stage([key for key, part in self._parts.items() if not part.missing])

    def _stage(self, part_keys: Sequence[str]) -> None:
        """Put what was made for these parts beside the data."""
        for part_key in part_keys:
            part = self._parts[part_key]
            for addition, made in zip(self.additions, part.made, strict=True):
                if made:
                    keys = [key for key, _ in made]
                    arrays = addition.arrays([values for _, values in made])
                    table = staged_table(keys, addition.fields, arrays, addition.notes())
                    addition.staging.add(part_key, table)
                    made.clear()
            if not part.missing:
                del self._parts[part_key]
        if part_keys:
            self._staged_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that an addition is computed for."""

    of: _Computed
    ready: ReadyRow
    key: RowKey
    columns: Mapping[str, Any]


def _grouped(recordings: Iterator[FetchedSpans]) -> Iterator[list[FetchedSpans]]:
    """Together until there is enough for a call."""
    group: list[FetchedSpans] = []
    seconds = 0.0
    for fetched in recordings:
        group.append(fetched)
        seconds += fetched.asked.audio_s
        if seconds >= CALL_S or len(group) >= MAX_AHEAD:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group
