"""Planning: list the recordings, take away what is done, cut the rest into shards.

The listing streams (``listing.py``). Recordings are looked up in the dataset some ten thousand at a
time (``lookup.py``); what is done is forgotten again, so planning holds what is to be done only,
and that packed (``packing.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from speechmill.dataset.commit import Version
from speechmill.dataset.layout import OWN_PREFIXES, agree_on_parts, read_layout
from speechmill.errors import DatasetError, JobError
from speechmill.job import Job
from speechmill.pipeline.listing import Folders, Listing, told_by_content, why_left_out
from speechmill.pipeline.lookup import Found, Lookup
from speechmill.pipeline.packing import ToDo
from speechmill.records import Part, Recording, Shard
from speechmill.storage import Store, inside

__all__ = ["Plan", "make_plan"]

STRIDE: Final = 10_000
"""Recordings between two looks around: at those that no name tells of, and at --limit."""

LOOK_UP: Final = 50_000
"""Recordings that are looked up in the dataset together: of each part there are several then."""

LOOKERS: Final = 16
"""Requests at the same time while planning."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build would do. ``shards`` are lists of recordings by part.

    Of the ``listed`` objects, ``left_out`` were not chosen (counted by reason). The others are
    ``done``; or to be done: ``new``, ``changed``, or the same bytes ``again`` (they failed before,
    or another recipe made their rows); or ``failed`` before and not to be tried again.
    ``elsewhere`` are those to be done whose parts are other builds', by ``shard_index``.
    ``same_name`` shows folders whose recordings lie in different directories: folder_name to two
    of these. ``unmatched`` recordings do not match a regular expression of ``folder``;
    ``prunable`` ones are gone from the source (counted where ``prune`` is set).
    """

    shards: tuple[Shard, ...]
    listed: int
    left_out: Mapping[str, int]
    done: int
    new: int
    changed: int
    again: int
    failed: int
    same_name: Mapping[str, tuple[str, str]]
    parts: Mapping[str, int]
    stale_failures: tuple[tuple[str, str], ...] = ()
    outdated_rows: tuple[tuple[Part, str, Version], ...] = ()
    listing_ended: bool = True
    names: frozenset[bytes] = frozenset()
    unseen: tuple[str, ...] = ()
    unmatched: int = 0
    elsewhere: int = 0
    prunable: int = 0

    @property
    def num_recordings(self) -> int:
        """How many recordings are to be done."""
        return sum(s.num_recordings for s in self.shards)

    @property
    def num_bytes(self) -> int:
        """Their size in the source, in bytes."""
        return sum(s.num_bytes for s in self.shards)


def make_plan(
    job: Job,
    source: Store,
    sink: Store,
    recipe: str,
    *,
    settle: Callable[[], None] | None = None,
    on_listed: Callable[[int], None] = lambda _: None,
) -> Plan:
    """List the source and plan what the sink lacks.

    With ``settle``, the plan is meant: it is called once there is something in the source, and
    then the number of parts of new folders is agreed on with other builds. Without, nothing is
    written. ``on_listed`` hears now and then how many objects have been listed.

    Raises:
        StorageError: the source or the sink cannot be listed or read.
        DatasetError: there are no recordings in the source.
        JobError: ``prune`` together with ``limit``.
    """
    if job.prune and job.limit is not None:
        raise JobError("--prune needs the whole listing; leave out --limit")
    if (inside(sink.url, source.url) or "").partition("/")[0] in OWN_PREFIXES:
        raise JobError(f"{source.url} is where the dataset itself goes; choose another sink")
    with ThreadPoolExecutor(LOOKERS, thread_name_prefix="plan") as pool:
        return _Planner(job, source, sink, recipe, pool).plan(settle, on_listed)


class _Planner:
    """One planning: recordings from the listing, by way of the look-up, to what is to be done."""

    def __init__(
        self, job: Job, source: Store, sink: Store, recipe: str, pool: ThreadPoolExecutor
    ) -> None:
        self.job, self.source, self.sink, self.recipe, self.pool = job, source, sink, recipe, pool
        self.layout = read_layout(sink)
        self.listing = Listing(job, source, sink)
        self.folders = Folders(job)
        self.lookup = Lookup(sink, self.layout, pool)
        self.to_do = ToDo(job)
        self.done = self.failed = 0
        self.to_look_at: list[tuple[str, Recording]] = []
        self.stale_failures: list[tuple[str, str]] = []
        self.outdated_rows: list[tuple[Part, str, Version]] = []

    def plan(self, settle: Callable[[], None] | None, on_listed: Callable[[int], None]) -> Plan:
        listing_ended = self._list(on_listed)
        self._refuse_nothing()
        wanted = {
            name: count
            for name, count in self.to_do.part_counts().items()
            if name not in self.layout.folders
        }
        agreed = self.layout.folders
        if settle is not None:
            settle()
            if wanted:
                agreed = agree_on_parts(self.sink, wanted).folders
        counts = {**wanted, **agreed}
        shards = tuple(self.to_do.shards(counts))
        return Plan(
            shards=shards,
            listed=self.listing.listed,
            left_out=dict(self.listing.left_out.most_common()),
            done=self.done,
            new=self.to_do.new,
            changed=self.to_do.changed,
            again=self.to_do.again,
            failed=self.failed,
            same_name=self.folders.same_name,
            parts=counts,
            stale_failures=tuple(self.stale_failures),
            outdated_rows=tuple(self.outdated_rows),
            listing_ended=listing_ended,
            names=frozenset(self.listing.names),
            unseen=tuple(self.listing.unseen),
            unmatched=self.folders.unmatched,
            elsewhere=self.to_do.elsewhere,
        )

    def _list(self, on_listed: Callable[[int], None]) -> bool:
        """Sort all that is listed, or enough of it. Whether the listing has ended."""
        is_enough = False
        for number, recording in enumerate(self.listing, 1):
            folder_name = self.folders.of(recording)
            if folder_name in self.layout.folders:
                self.lookup.add(folder_name, recording)
            else:  # a new folder has nothing to look up
                self._add(folder_name, recording)
            if number % STRIDE == 0:
                if self.lookup.num_waiting >= LOOK_UP:
                    self._look_up()
                self._sniff()
                on_listed(self.listing.listed)
                if is_enough := self.to_do.is_enough(self.folders.recent):
                    break
        self._look_up()
        self._sniff()
        on_listed(self.listing.listed)
        return not is_enough

    def _refuse_nothing(self) -> None:
        listed, left_out = self.listing.listed, self.listing.left_out
        if self.to_do.planned or self.done or self.failed or (self.job.prune and listed):
            return
        others = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        found = f"of {listed} files none was chosen ({others})" if listed else "it is empty"
        raise DatasetError(
            f"no recordings found in {self.source.url}: {found}; "
            "check the path, and --extension, --include and --exclude"
        )

    def _look_up(self) -> None:
        """Sort what the dataset may have into what is done, what failed, and what is to be done."""
        for found in self.lookup.found():
            self._sort(found)

    def _sort(self, found: Found) -> None:
        recording, name, part, row = found.recording, found.name, found.part, found.row
        listed = Version.of(recording, self.recipe)
        failure = self.lookup.failure(name)
        if row is not None and row.same_source(listed) and row.recipe == self.recipe:
            self.done += 1
            if failure.version is not None:
                self.stale_failures.append((failure.key, name))
        elif failure.stage == "decode" and failure.version == listed and not self.job.retry_failed:
            self.failed += 1
            if row is not None:
                self.outdated_rows.append((part, name, row))
        else:
            if before := row or failure.version:
                recording = replace(recording, replaces=before.etag)
            if part.count != self.layout.folders[part.folder_name]:
                self.to_do.stays_in(part, name)
            self._add(part.folder_name, recording)

    def _sniff(self) -> None:
        """Take those files that are recordings by their first bytes, of those whose names do not
        tell."""
        waiting, self.to_look_at = self.to_look_at, []
        looked = self.pool.map(partial(why_left_out, self.source), [r for _, r in waiting])
        for (folder_name, recording), reason in zip(waiting, looked, strict=True):
            if reason is None:
                self._take(folder_name, recording)
            else:
                self.listing.left_out[reason] += 1

    def _add(self, folder_name: str, recording: Recording) -> None:
        if told_by_content(recording, self.job):
            self.to_look_at.append((folder_name, recording))
        else:
            self._take(folder_name, recording)

    def _take(self, folder_name: str, recording: Recording) -> None:
        if not self.to_do.take(folder_name, recording):
            self.listing.left_out["beyond --limit"] += 1
