"""Planning: list the recordings, take away what is done, cut the rest into shards.

The listing streams. Recordings are looked up in the dataset some ten thousand at a time, by the
parts they belong to; what is done is forgotten again, so planning holds what is to be done only.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from speechmill import audio
from speechmill.dataset.commit import Version, versions
from speechmill.dataset.layout import (
    DATA,
    FAILURES,
    OWN_PREFIXES,
    ROOT_FOLDER,
    agree_on_parts,
    data_key,
    folder_rule,
    partition_rule,
    read_layout,
)
from speechmill.dataset.reader import list_parts, read_columns, scan
from speechmill.dataset.schema import IDENTITY_COLUMNS
from speechmill.errors import (
    AccessDeniedError,
    ConflictError,
    DatasetError,
    JobError,
    NotFoundError,
)
from speechmill.job import Job
from speechmill.records import Part, Recording, Shard, printable
from speechmill.selection import estimate_s, extension_of, selection
from speechmill.storage import Store, inside

__all__ = ["HEAD_BYTES", "Plan", "below_sink", "make_plan", "name_digest"]

LOOK_UP = 50_000  # recordings that are looked up in the dataset together
LOOKERS = 16  # requests at the same time while planning
HEAD_BYTES = 64  # of a file without extension, to see whether it is audio
SMALL_PARTS = 0.5  # of a full part: so much audio small parts bring together to make a shard
LIMIT_OVERHANG = 10_000  # recordings of other folders after --limit is reached: then listing ends


@dataclass(slots=True)
class _Folder:
    """What planning knows of a folder that has something to be done."""

    recordings: list[Recording] = field(default_factory=list)
    estimated_s: float = 0.0  # of all that is listed, also beyond --limit
    earlier: dict[str, Part] = field(default_factory=dict)  # where rows are from before it grew


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


def name_digest(file_name: str) -> bytes:
    """What ``Plan.names`` holds of a file name."""
    return hashlib.blake2b(file_name.encode(), digest_size=16).digest()


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
    return _Planner(job, source, sink, recipe).plan(settle, on_listed)


class _Planner:
    """The state of one planning."""

    def __init__(self, job: Job, source: Store, sink: Store, recipe: str) -> None:
        self.job, self.source, self.sink, self.recipe = job, source, sink, recipe
        self.folder_of = folder_rule(job.folder)
        self.partition_of = partition_rule(job.partition_by)
        self.elsewhere = 0
        self.layout = read_layout(sink)
        self.parts_there = {o.key: o for o in list_parts(sink)}
        self.failures = _read_failures(sink)
        self.folders: defaultdict[str, _Folder] = defaultdict(_Folder)
        self.directories: dict[str, str] = {}
        self.same_name: dict[str, tuple[str, str]] = {}
        self.left_out: Counter[str] = Counter()
        self.listed = self.done = self.new = self.changed = self.again = self.failed = 0
        self.planned = 0
        self.bare: list[tuple[str, Recording]] = []
        self.stale_failures: list[tuple[str, str]] = []
        self.outdated_rows: list[tuple[Part, str, Version]] = []
        self.names: set[bytes] = set()
        self.unseen: list[str] = []
        self.unmatched = 0
        self.listing_ended = True

    def plan(self, settle: Callable[[], None] | None, on_listed: Callable[[int], None]) -> Plan:
        with ThreadPoolExecutor(LOOKERS, thread_name_prefix="plan") as pool:
            for batch in _batches(self._chosen(), LOOK_UP):
                self._look_up(batch, pool)
                self._sniff(pool)
                on_listed(self.listed)
                if self._enough(batch):
                    self.listing_ended = False
                    break
        wanted = {
            name: max(1, round(f.estimated_s / (60 * self.job.part_minutes)))
            for name, f in self.folders.items()
            if f.recordings and name not in self.layout.folders
        }
        self._refuse_nothing()
        if settle is not None:
            settle()
            if wanted:
                self.layout = agree_on_parts(self.sink, wanted)
        shards = tuple(self._shards({**wanted, **self.layout.folders}))
        return Plan(
            shards=shards,
            listed=self.listed,
            left_out=dict(self.left_out.most_common()),
            done=self.done,
            new=self.new,
            changed=self.changed,
            again=self.again,
            failed=self.failed,
            same_name=self.same_name,
            parts={**wanted, **self.layout.folders},
            stale_failures=tuple(self.stale_failures),
            outdated_rows=tuple(self.outdated_rows),
            listing_ended=self.listing_ended,
            names=frozenset(self.names),
            unseen=tuple(self.unseen),
            unmatched=self.unmatched,
            elsewhere=self.elsewhere,
        )

    def _refuse_nothing(self) -> None:
        if self.planned or self.done or self.failed or (self.job.prune and self.listed):
            return
        others = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        found = (
            f"of {self.listed} files none was chosen ({others})" if self.listed else "it is empty"
        )
        raise DatasetError(
            f"no recordings found in {self.source.url}: {found}; "
            "check the path, and --extension, --include and --exclude"
        )

    def _chosen(self) -> Iterator[Recording]:
        """The listed objects that the job's selection takes."""
        chosen = selection(self.job)
        sink_prefix = inside(self.source.url, self.sink.url)
        for listed in self.source.list():
            if sink_prefix is not None and below_sink(listed.key, sink_prefix):
                continue
            self.listed += 1
            name = printable(listed.key)
            if self.job.prune:
                self.names.add(name_digest(name))
                if not listed.etag:
                    self.unseen.append(f"{name}/")
            # What could not even be looked at (no etag) is taken: its failure says why.
            if listed.etag and (reason := chosen(name)) is not None:
                self.left_out[reason] += 1
            else:
                yield Recording(listed.key, listed.size, listed.etag, listed.modified_us)

    def _sniff(self, pool: ThreadPoolExecutor) -> None:
        """Take those files without an extension that are audio by their first bytes."""
        bare, self.bare = self.bare, []
        for (folder_name, recording), is_audio in zip(
            bare, pool.map(self._is_audio, [r for _, r in bare]), strict=True
        ):
            if is_audio:
                self._take(folder_name, recording)
            else:
                self.left_out["no extension, no audio"] += 1

    def _is_audio(self, recording: Recording) -> bool:
        try:
            head = self.source.read(
                recording.key, 0, min(HEAD_BYTES, recording.size), etag=recording.etag
            )
        except (NotFoundError, ConflictError):  # gone or changed meanwhile: the next build's
            return False
        except AccessDeniedError:  # not to be read: let it fail where that is recorded
            return True
        return audio.looks_like_audio(head)

    def _look_up(self, batch: list[Recording], pool: ThreadPoolExecutor) -> None:
        """Sort a batch into what is done, what failed, and what is to be done."""
        candidates: dict[Recording, list[Part]] = {}
        for recording in batch:
            folder_name, name = self._folder(recording), recording.file_name
            if folder_name not in self.layout.folders:
                self._add(folder_name, recording)
            else:
                candidates[recording] = [
                    *self.layout.earlier_parts(folder_name, name),
                    self.layout.part(folder_name, name),
                ]
        parts = list({part: None for some in candidates.values() for part in some})
        known = dict(zip(parts, pool.map(self._versions, parts), strict=True))
        for recording, some in candidates.items():
            name = recording.file_name
            part = next((part for part in some if name in known[part]), some[-1])
            self._sort(part, recording, known[part].get(name))

    def _folder(self, recording: Recording) -> str:
        name = recording.file_name
        folder_name = self.folder_of(name)
        directory = posixpath.dirname(name)
        seen = self.directories.setdefault(folder_name, directory)
        if folder_name == ROOT_FOLDER and self.job.folder not in ("parent", "first", "path"):
            self.unmatched += 1
        if seen != directory and self.job.folder == "parent":
            self.same_name.setdefault(folder_name, (seen, directory))
        return self.partition_of(folder_name)

    def _versions(self, part: Part) -> dict[str, Version]:
        there = self.parts_there.get(data_key(part))
        if there is None:
            return {}
        return versions(read_columns(self.sink, there, IDENTITY_COLUMNS))

    def _sort(self, part: Part, recording: Recording, row: Version | None) -> None:
        name = recording.file_name
        listed = Version.of(recording, self.recipe)
        failure, stage, failure_key = self.failures.get(name, (None, "", ""))
        if row is not None and row.same_source(listed) and row.recipe == self.recipe:
            self.done += 1
            if failure is not None:
                self.stale_failures.append((failure_key, name))
        elif stage == "decode" and failure == listed and not self.job.retry_failed:
            self.failed += 1
            if row is not None:
                self.outdated_rows.append((part, name, row))
        else:
            if before := row or failure:
                recording = replace(recording, replaces=before.etag)
            if part.count != self.layout.folders[part.folder_name]:
                self.folders[part.folder_name].earlier[name] = part
            self._add(part.folder_name, recording)

    def _add(self, folder_name: str, recording: Recording) -> None:
        if recording.etag and not extension_of(recording.key) and not self.job.extension:
            self.bare.append((folder_name, recording))
        else:
            self._take(folder_name, recording)

    def _take(self, folder_name: str, recording: Recording) -> None:
        folder = self.folders[folder_name]
        folder.estimated_s += estimate_s(recording)
        if self.job.limit is not None and self.planned >= self.job.limit:
            self.left_out["beyond --limit"] += 1
            return
        folder.recordings.append(recording)
        self.planned += 1
        if not recording.replaces:
            self.new += 1
        elif recording.replaces == recording.etag:
            self.again += 1
        else:
            self.changed += 1

    def _enough(self, batch: list[Recording]) -> bool:
        """Whether --limit is reached, and the folders that it took from are listed to the end."""
        if self.job.limit is None or self.planned < self.job.limit:
            return False
        tail = batch[-LIMIT_OVERHANG:]
        folders = {self._folder(r) for r in tail} & self.folders.keys()
        return not any(self.folders[name].recordings for name in folders)

    def _shards(self, counts: Mapping[str, int]) -> Iterator[Shard]:
        """Parts in order of their names, several together until a shard is worth its while."""
        target_s = 60 * self.job.part_minutes * SMALL_PARTS
        index, waiting_s = 0, 0.0
        waiting: list[tuple[Part, tuple[Recording, ...]]] = []
        for folder_name in sorted(self.folders):
            by_part: defaultdict[Part, list[Recording]] = defaultdict(list)
            folder = self.folders.pop(folder_name)
            for recording in folder.recordings:
                name = recording.file_name
                part = folder.earlier.get(name) or Part.of(folder_name, name, counts[folder_name])
                by_part[part].append(recording)
            for part in sorted(by_part):
                recordings = by_part[part]
                if not part.belongs_to(self.job.shard_index, self.job.shard_count):
                    self.elsewhere += len(recordings)
                    continue
                part_s = sum(map(estimate_s, recordings))
                if waiting and waiting_s + part_s > target_s:
                    yield Shard(index, tuple(waiting))
                    index, waiting, waiting_s = index + 1, [], 0.0
                waiting.append((part, tuple(recordings)))
                waiting_s += part_s
        if waiting:
            yield Shard(index, tuple(waiting))


def _batches(recordings: Iterable[Recording], size: int) -> Iterator[list[Recording]]:
    batch: list[Recording] = []
    for recording in recordings:
        batch.append(recording)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def below_sink(key: str, sink_prefix: str) -> bool:
    """Whether an object of the source is one of the sink, which lies in it at this prefix.

    Raises:
        JobError: the source's own folders are called as those of a sink.
    """
    if sink_prefix:
        return key.startswith(f"{sink_prefix}/")
    top, _, below = key.partition("/")
    if top in (DATA, FAILURES) and not below.startswith("folder="):
        raise JobError(
            f"the source has a folder {top!r} of its own ({printable(key)}), which is where the "
            "dataset would go; choose another sink"
        )
    return top in OWN_PREFIXES


def _read_failures(sink: Store) -> dict[str, tuple[Version, str, str]]:
    """Each failed recording's version and stage, and the key of its failures file."""
    found: dict[str, tuple[Version, str, str]] = {}
    for part, table in scan(sink, [*IDENTITY_COLUMNS, "stage"], FAILURES):
        stages = dict(zip(table["file_name"].to_pylist(), table["stage"].to_pylist(), strict=True))
        found |= {
            name: (version, stages[name], part.key) for name, version in versions(table).items()
        }
    return found
