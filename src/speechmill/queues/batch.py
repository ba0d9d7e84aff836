"""Process a batch of recordings that messages request: look them up, process and commit them.

The same ``process_shard`` as in a build does the work. Before it comes what a plan would contain:
the current version of each recording, its part, and whether its row exists already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Literal

from speechmill.dataset.commit import Version, remove
from speechmill.dataset.growth import OUTGROWN, grow, place, read_versions
from speechmill.dataset.layout import (
    agree_on_parts,
    data_key,
    failures_key,
    partition_rule,
    read_layout,
)
from speechmill.errors import NotFoundError, StorageError, UnavailableError
from speechmill.pipeline.listing import read_head, told_by_content, unlike_recording
from speechmill.pipeline.resources import Resources
from speechmill.pipeline.shard import process_shard
from speechmill.pipeline.suspects import CrashCounts, InHand, give_up
from speechmill.queues.notices import Notice
from speechmill.records import (
    Failure,
    Part,
    Recording,
    RecordingDone,
    Shard,
    ShardReport,
    printable,
)

__all__ = ["BatchProcessor", "Outcome", "Request", "Verdict"]

CRASHES_PER_ATTEMPT = 2  # workers also die for reasons of their own, so one crash proves nothing

Verdict = Literal["row", "there", "failed", "missing", "left out", "dropped", "unfinished"]
"""The outcome of a request: the row was made; it existed; the recording failed; the object does not
exist; it is not selected; the row was dropped; or the batch stopped before it."""


@dataclass(slots=True, eq=False)
class Request:
    """A recording that messages request. ``key`` is relative to the source. ``alone``: it may have
    crashed workers, so it is processed alone, and its begin is recorded."""

    notice: Notice
    key: str
    alone: bool = False

    @property
    def file_name(self) -> str:
        """Its name in the dataset."""
        return printable(self.key)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The verdict on a request, and the failure behind it."""

    request: Request
    verdict: Verdict
    failure: Failure | None = None


def _outcome(request: Request, done: RecordingDone | None) -> Outcome:
    if done is None:
        return Outcome(request, "unfinished")
    if done.gone:
        return Outcome(request, "missing")
    return Outcome(request, "failed" if done.failure else "row", done.failure)


class BatchProcessor:
    """Processes batches of requests for one sink. Thread-safe."""

    def __init__(self, tools: Resources, *, commit_every_s: float) -> None:
        self._tools, self._commit_every_s = tools, commit_every_s
        self._partition_of = partition_rule(tools.job.partition_by)
        self._layout = read_layout(tools.sink)
        self._full_s = 60 * tools.job.part_minutes
        self._in_hand = InHand(tools.sink)
        self._crashes = CrashCounts(tools.sink, CRASHES_PER_ATTEMPT * tools.job.max_attempts)

    def part(self, request: Request) -> Part:
        """Guess the part of its rows, so that recordings of one part share a batch."""
        folder = self._folder(request)
        count = self._layout.folders.get(folder, request.notice.parts)
        return Part.of(folder, request.file_name, count)

    def is_suspect(self, request: Request) -> bool:
        """Whether processes have died with it in hand, so that it must be processed alone."""
        return self._in_hand.is_suspect(request.file_name)

    def _folder(self, request: Request) -> str:
        return self._partition_of(self._tools.folder_of(request.file_name))

    def process(
        self, requests: Sequence[Request], *, stop: Callable[[], bool]
    ) -> tuple[Sequence[Outcome], ShardReport]:
        """Make and commit the rows that the requests ask for.

        Raises:
            UnavailableError: a store stays down. Rows already committed stay.
            SpeechmillError: see ``process_shard``.
        """
        alone = [request.file_name for request in requests if request.alone]
        try:
            with self._in_hand.note([request.file_name for request in requests]):
                outcomes, report = self._process(requests, stop)
        except Exception:
            for name in alone:
                self._crashes.take_back(name)
            raise
        unfinished = {o.request.file_name for o in outcomes if o.verdict == "unfinished"}
        ended = {request.file_name for request in requests} - unfinished
        self._in_hand.done(ended)
        for name in alone:
            end = self._crashes.clear if name in ended else self._crashes.take_back
            end(name)
        return outcomes, report

    def _process(
        self, requests: Sequence[Request], stop: Callable[[], bool]
    ) -> tuple[Sequence[Outcome], ShardReport]:
        outcomes: list[Outcome] = []
        todo: dict[str, tuple[Request, Recording]] = {}  # by file name
        parts = self._parts(requests)
        known = self._versions_of(parts.values())
        removed = [r for r in requests if r.notice.kind == "removed"]
        # Rows were looked at before the objects: the row of a later object is not dropped.
        for request in removed:
            if (there := self._stored(request.key)) is not None:  # again
                todo[request.file_name] = request, there
            else:
                self._drop(request, parts[request], known)
                outcomes.append(Outcome(request, "dropped"))
        self._look_up([r for r in requests if r.notice.kind == "created"], outcomes, todo)
        by_part: defaultdict[Part, list[Recording]] = defaultdict(list)
        for request, recording in todo.values():
            part = parts[request]
            if (wanted := self._to_process(part, recording, known)) is None:
                outcomes.append(Outcome(request, "there"))
            elif request.alone and not self._crashes.begin(recording.file_name):
                (failure,) = give_up(self._tools, part, [recording], self._crashes.message)
                outcomes.append(Outcome(request, "failed", failure))
            else:
                by_part[part].append(wanted)
        report = self._process_parts(by_part, stop)
        done = {d.file_name: d for d in report.done}
        for recording in chain.from_iterable(by_part.values()):
            request, _ = todo[recording.file_name]
            outcomes.append(_outcome(request, done.get(recording.file_name)))
        self._follow_growth(report)
        return outcomes, report

    def _process_parts(
        self, by_part: Mapping[Part, Sequence[Recording]], stop: Callable[[], bool]
    ) -> ShardReport:
        if not by_part:
            return ShardReport(0)
        shard = Shard(0, sorted(by_part.items()))
        return process_shard(self._tools.job, shard, stop=stop, commit_every_s=self._commit_every_s)

    def _parts(self, requests: Sequence[Request]) -> dict[Request, Part]:
        """Find the part of each request's recording."""
        folders = {r: self._folder(r) for r in requests}
        wanted: dict[str, int] = {}
        for request, folder in folders.items():
            wanted[folder] = max(wanted.get(folder, 1), request.notice.parts)
        new = {name: n for name, n in wanted.items() if name not in self._layout.folders}
        if new:
            self._layout = agree_on_parts(self._tools.sink, new)
        layout = self._layout
        known = self._versions_of(
            part for r in requests for part in layout.earlier_parts(folders[r], r.file_name)
        )
        return {r: place(layout, folders[r], [r.file_name], known)[r.file_name] for r in requests}

    def _versions_of(self, parts: Iterable[Part]) -> dict[Part, Mapping[str, Version]]:
        """Read the versions of the recordings in parts."""
        distinct = list(dict.fromkeys(parts))
        read = partial(read_versions, self._tools.sink)
        return dict(zip(distinct, self._tools.threads.fetching.map(read, distinct), strict=True))

    def _look_up(
        self,
        requests: Sequence[Request],
        outcomes: list[Outcome],
        todo: dict[str, tuple[Request, Recording]],
    ) -> None:
        """Look up the current version of each object; leave out what is no recording."""
        found = self._tools.threads.fetching.map(
            lambda request: request.notice.recording or self._stored(request.key), requests
        )
        for request, recording in zip(requests, found, strict=True):
            if recording is None:
                outcomes.append(Outcome(request, "missing"))
            elif not self._is_chosen(recording):
                outcomes.append(Outcome(request, "left out"))
            else:
                todo[request.file_name] = request, recording

    def _stored(self, key: str) -> Recording | None:
        """Look up an object's current version in the store; None where there is none."""
        try:
            there = self._tools.source.head(key)
        except NotFoundError:
            return None
        except UnavailableError:
            raise
        except StorageError:  # fetching it fails with the reason, which is recorded
            return Recording(key, 0, "", 0)
        return Recording(key, there.size, there.etag, there.modified_us)

    def _is_chosen(self, recording: Recording) -> bool:
        """Whether it is a recording: by its first bytes, where its name does not tell."""
        if not told_by_content(recording, self._tools.job):
            return True
        try:
            head = read_head(self._tools.source, recording)
        except StorageError:  # fetching it fails with the reason
            return True
        return unlike_recording(recording, head) is None

    def _to_process(
        self, part: Part, recording: Recording, known: Mapping[Part, Mapping[str, Version]]
    ) -> Recording | None:
        """Add the version that the recording replaces; None where its row exists already."""
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
        """Drop the row and the failure of an object that is gone."""
        sink, name = self._tools.sink, request.file_name
        row = known.get(part, {}).get(name)
        if row is not None:
            remove(sink, data_key(part), lambda n, version: n == name and version == row)
        remove(sink, failures_key(part), lambda n, _: n == name)

    def _follow_growth(self, report: ShardReport) -> None:
        """Reread the layout where folders have grown; grow those whose parts are full."""
        layout = self._layout
        for part, audio_s in report.filled:
            count = layout.folders.get(part.folder_name, part.count)
            if part.count > count:
                self._layout = layout = read_layout(self._tools.sink)
            elif part.count == count and audio_s > OUTGROWN * self._full_s:
                self._layout = layout = grow(
                    self._tools.sink, part.folder_name, part.count, self._tools.schema
                )
