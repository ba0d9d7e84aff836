"""A batch of recordings that messages have asked for: looked up, processed, committed.

The same ``process_shard`` as in a build does the work. Before it comes what a plan would have said:
which version of a recording there is, which part it belongs to, whether its row is there already.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from speechmill import audio
from speechmill.dataset.commit import Version, commit, remove
from speechmill.dataset.growth import OUTGROWN, grow, place, read_versions
from speechmill.dataset.layout import (
    STATE,
    agree_on_parts,
    data_key,
    failures_key,
    partition_rule,
    read_layout,
)
from speechmill.dataset.schema import utterances_to_table
from speechmill.errors import (
    ConflictError,
    NotFoundError,
    StorageError,
    UnavailableError,
    WorkerDiedError,
)
from speechmill.pipeline.listing import HEAD_BYTES
from speechmill.pipeline.resources import Resources
from speechmill.pipeline.selection import extension_of
from speechmill.pipeline.shard import process_shard
from speechmill.queues.notices import Notice
from speechmill.records import Failure, Part, Recording, Shard, ShardReport, printable
from speechmill.storage import Store

__all__ = ["Batches", "Outcome", "Request", "Verdict"]

LIVES = 2  # workers that may die of a recording alone, for each attempt that it has

Verdict = Literal["row", "there", "failed", "missing", "left out", "dropped", "unfinished"]
"""What became of a recording: it has its row now; it had it before; it failed; there is no such
object; it was not chosen; its row was dropped; or there was no time for it."""


@dataclass(slots=True, eq=False)
class Request:
    """A recording that messages ask for. ``key`` is relative to the source. ``alone``: workers may
    have died of it, so there is nothing else in hand, and it is noted that it was begun."""

    notice: Notice
    key: str
    alone: bool = False

    @property
    def file_name(self) -> str:
        """The dataset's name for it."""
        return printable(self.key)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a request, and why it failed."""

    request: Request
    verdict: Verdict
    failure: Failure | None = None


@dataclass(slots=True)
class _Round:
    """One batch on its way."""

    outcomes: list[Outcome] = field(default_factory=list)
    todo: dict[str, tuple[Request, Recording]] = field(default_factory=dict)  # by file name

    def settle(self, request: Request, verdict: Verdict, failure: Failure | None = None) -> None:
        self.outcomes.append(Outcome(request, verdict, failure))


class _Suspects:
    """Recordings that workers may have died of: how often each was begun, alone, and not ended.

    It is kept in the sink: whoever knew has died. The broker's own count will not do: it counts
    what a worker only held, so where workers are killed often it blames the innocent.
    """

    def __init__(self, sink: Store, most: int) -> None:
        self._sink, self._most = sink, most

    def _key(self, file_name: str) -> str:
        digest = hashlib.blake2b(file_name.encode(), digest_size=16).hexdigest()
        return f"{STATE}/suspects/{digest}.json"

    def begin(self, file_name: str) -> bool:
        """Count that it is begun. False where it was begun too often."""
        key = self._key(file_name)
        try:
            begun = int(json.loads(self._sink.get(key).data)["begun"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            begun = 0
        if begun >= self._most:
            return False
        told = {"file_name": file_name, "begun": begun + 1}
        self._sink.put(key, json.dumps(told).encode())
        return True

    def clear(self, file_name: str) -> None:
        """It has ended, one way or another."""
        with suppress(NotFoundError):
            self._sink.delete(self._key(file_name))


class Batches:
    """Processes batches of requests for one sink. Thread-safe."""

    def __init__(self, tools: Resources, *, commit_every_s: float) -> None:
        self._tools, self._commit_every_s = tools, commit_every_s
        self._partition_of = partition_rule(tools.job.partition_by)
        self._layout = read_layout(tools.sink)
        self._full_s = 60 * tools.job.part_minutes
        self._suspects = _Suspects(tools.sink, LIVES * tools.job.max_attempts)

    def part(self, request: Request) -> Part:
        """Where its rows are likely to go: good enough to put neighbours together."""
        folder = self._folder(request)
        count = self._layout.folders.get(folder, request.notice.parts)
        return Part.of(folder, request.file_name, count)

    def _folder(self, request: Request) -> str:
        return self._partition_of(self._tools.folder_of(request.file_name))

    def process(
        self, requests: Sequence[Request], *, stop: Callable[[], bool]
    ) -> tuple[Sequence[Outcome], ShardReport]:
        """Make the rows that the requests ask for; commit them.

        Raises:
            UnavailableError: a store stays down. What was committed stays.
            SpeechmillError: see ``process_shard``.
        """
        now = _Round()
        parts = self._parts(requests)
        known = self._known(parts.values())
        removed = [r for r in requests if r.notice.kind == "removed"]
        # Rows were looked at before the objects: the row of a later object is not dropped.
        for request in removed:
            if (there := self._asked(request.key)) is not None:  # again
                now.todo[request.file_name] = request, there
            else:
                self._drop(request, parts[request], known)
                now.settle(request, "dropped")
        self._find([r for r in requests if r.notice.kind == "created"], now)
        by_part: defaultdict[Part, list[Recording]] = defaultdict(list)
        for request, recording in now.todo.values():
            part = parts[request]
            if (wanted := self._wanted(part, recording, known)) is None:
                now.settle(request, "there")
            elif request.alone and not self._suspects.begin(recording.file_name):
                self._give_up(request, part, recording, now)
            else:
                by_part[part].append(wanted)
        shard = Shard(0, tuple((part, tuple(some)) for part, some in sorted(by_part.items())))
        report = self._process(shard, stop)
        self._tell(report, by_part, now)
        self._look_at_parts(report)
        for request in requests:
            if request.alone:
                self._suspects.clear(request.file_name)
        return now.outcomes, report

    def _process(self, shard: Shard, stop: Callable[[], bool]) -> ShardReport:
        if not shard.parts:
            return ShardReport(0)
        return process_shard(self._tools.job, shard, stop=stop, commit_every_s=self._commit_every_s)

    def _parts(self, requests: Sequence[Request]) -> dict[Request, Part]:
        """The part of each request's recording."""
        wanted: dict[str, int] = {}
        for request in requests:
            folder = self._folder(request)
            wanted[folder] = max(wanted.get(folder, 1), request.notice.parts)
        new = {name: n for name, n in wanted.items() if name not in self._layout.folders}
        if new:
            self._layout = agree_on_parts(self._tools.sink, new)
        layout = self._layout
        grown = [r for r in requests if self._folder(r) in layout.earlier]
        known = self._known(
            part for r in grown for part in layout.earlier_parts(self._folder(r), r.file_name)
        )
        return {
            r: place(layout, self._folder(r), [r.file_name], known)[r.file_name] for r in requests
        }

    def _known(self, parts: Iterable[Part]) -> dict[Part, Mapping[str, Version]]:
        """The versions that parts hold."""
        distinct = list(dict.fromkeys(parts))
        read = partial(read_versions, self._tools.sink)
        return dict(zip(distinct, self._tools.threads.fetching.map(read, distinct), strict=True))

    def _find(self, requests: Sequence[Request], now: _Round) -> None:
        """Which version of each object there is, if any; what is no recording is left out."""
        found = self._tools.threads.fetching.map(self._look, requests)
        for request, recording in zip(requests, found, strict=True):
            if recording is None:
                now.settle(request, "missing")
            elif not self._is_chosen(recording):
                now.settle(request, "left out")
            else:
                now.todo[request.file_name] = request, recording

    def _look(self, request: Request) -> Recording | None:
        return request.notice.recording or self._asked(request.key)

    def _asked(self, key: str) -> Recording | None:
        """An object as the store has it now; None where it has none."""
        try:
            there = self._tools.source.head(key)
        except NotFoundError:
            return None
        except UnavailableError:
            raise
        except StorageError:  # why, fetching it will say: that is recorded
            return Recording(key, 0, "", 0)
        return Recording(key, there.size, there.etag, there.modified_us)

    def _is_chosen(self, recording: Recording) -> bool:
        """Whether it is audio, where only its first bytes can tell."""
        if extension_of(recording.key) or not recording.etag or self._tools.job.extension:
            return True
        try:
            head = self._tools.source.read(
                recording.key, 0, min(HEAD_BYTES, recording.size), etag=recording.etag
            )
        except (NotFoundError, ConflictError, StorageError):  # fetching it will say
            return True
        return audio.looks_like_audio(head)

    def _wanted(
        self, part: Part, recording: Recording, known: Mapping[Part, Mapping[str, Version]]
    ) -> Recording | None:
        """The recording with the version that it replaces; None where its row is there."""
        row = known.get(part, {}).get(recording.file_name)
        if row is None:
            return recording
        recipe = self._tools.recipe.id
        if row.same_source(Version.of(recording, recipe)) and row.recipe == recipe:
            return None
        return replace(recording, replaces=row.etag)

    def _drop(
        self, request: Request, part: Part, known: Mapping[Part, Mapping[str, Version]]
    ) -> None:
        """Drop what there is of an object that is gone."""
        sink, name = self._tools.sink, request.file_name
        row = known.get(part, {}).get(name)
        if row is not None:
            remove(sink, data_key(part), lambda n, version: n == name and version == row)
        remove(sink, failures_key(part), lambda n, _: n == name)

    def _give_up(self, request: Request, part: Part, recording: Recording, now: _Round) -> None:
        failure = Failure(
            recording,
            self._tools.folder_of(recording.file_name),
            "worker",
            WorkerDiedError.__name__,
            f"{LIVES * self._tools.job.max_attempts} workers went away while they had nothing else "
            "in hand: out of memory, perhaps",
        )
        recipe = self._tools.recipe.id
        commit(
            self._tools.sink,
            part,
            utterances_to_table([], self._tools.schema, recipe),
            [failure],
            recipe=recipe,
            replaces={},
            is_current=self._tools.is_current,
        )
        now.settle(request, "failed", failure)

    def _tell(
        self, report: ShardReport, by_part: Mapping[Part, Sequence[Recording]], now: _Round
    ) -> None:
        done = {d.file_name: d for d in report.done}
        for recordings in by_part.values():
            for recording in recordings:
                request, _ = now.todo[recording.file_name]
                what = done.get(recording.file_name)
                if what is None:
                    now.settle(request, "unfinished")
                elif what.gone:
                    now.settle(request, "missing")
                elif what.failure:
                    now.settle(request, "failed", what.failure)
                else:
                    now.settle(request, "row")

    def _look_at_parts(self, report: ShardReport) -> None:
        """Learn of folders that have grown; give more parts to those that should."""
        layout = self._layout
        for part, audio_s in report.filled:
            count = layout.folders.get(part.folder_name, part.count)
            if part.count > count:
                self._layout = layout = read_layout(self._tools.sink)
            elif part.count == count and audio_s > OUTGROWN * self._full_s:
                self._layout = layout = grow(
                    self._tools.sink, part.folder_name, part.count, self._tools.schema
                )
