"""Planning: list the recordings, take away what is done, cut the rest into shards.

The listing streams. Recordings are looked up in the dataset some ten thousand at a time, by the
parts they belong to; what is done is forgotten again, so planning holds what is to be done only,
and that packed.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

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
from speechmill.pipeline.selection import estimate_s, extension_of, selection
from speechmill.records import Part, Recording, Shard, pack, printable, unpack
from speechmill.storage import Store, inside

__all__ = ["HEAD_BYTES", "Plan", "below_sink", "make_plan", "name_digest"]

STRIDE = 10_000  # recordings between two looks around: at those without extension, at --limit
LOOSE = 10_000  # recordings that are held as such before they are packed
FEW = 3  # recordings of a group that are worth packing: fewer take long and save little
LOOK_UP = 50_000  # recordings that are looked up in the dataset together
LOOKED_UP = 10_000  # of these at the same time
LOOKERS = 16  # requests at the same time while planning
HEAD_BYTES = 64  # of a file without extension, to see whether it is audio
SMALL_PARTS = 0.5  # of a full part: so much audio small parts bring together to make a shard
LIMIT_OVERHANG = 10_000  # recordings of other folders after --limit is reached: then listing ends


G = TypeVar("G")  # what recordings are grouped by


class _Pile(Generic[G]):
    """Recordings in groups. All but the last few thousand, and very small groups, are packed."""

    def __init__(self) -> None:
        self._packed: defaultdict[G, list[bytes]] = defaultdict(list)
        self._few: dict[G, list[Recording]] = {}
        self._new: defaultdict[G, list[Recording]] = defaultdict(list)
        self._num_new = 0
        self.size = 0

    def add(self, group: G, recording: Recording) -> None:
        self._new[group].append(recording)
        self._num_new += 1
        self.size += 1
        if self._num_new == LOOSE:
            self._press()

    def _press(self) -> None:
        # All groups at once: a corpus is listed folder by folder, and none of them may be large.
        for group, new in self._new.items():
            recordings = self._few.pop(group, []) + new
            if len(recordings) < FEW:
                self._few[group] = recordings
            else:
                self._packed[group].append(pack(recordings))
        self._new.clear()
        self._num_new = 0

    def groups(self) -> list[G]:
        """The groups; in the same order each time."""
        return list(dict.fromkeys([*self._packed, *self._few, *self._new]))

    def take(self, group: G) -> Iterator[Recording]:
        """Remove a group, recording by recording, in the order in which they came."""
        packed = self._packed.pop(group, [])
        few, new = self._few.pop(group, []), self._new.pop(group, [])
        self._num_new -= len(new)
        while packed:
            yield from unpack(packed.pop(0))
        yield from few
        yield from new


@dataclass(slots=True)
class _Folder:
    """What planning knows of a folder that has something to be done."""

    planned: int = 0
    estimated_s: float = 0.0  # of all that is listed, also beyond --limit
    earlier: dict[str, Part] = field(default_factory=dict)  # where rows are from before it grew


@dataclass(frozen=True, slots=True)
class _LookedUp:
    """Recordings, each with its name and the parts that it may be in; what these parts have."""

    recordings: list[tuple[Recording, str, list[Part]]]
    versions: dict[Part, Future[dict[str, Version]]]


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
        self.to_do: _Pile[str] = _Pile()
        self.unsure: _Pile[Part | str] = _Pile()
        self.recent: deque[str] = deque(maxlen=LIMIT_OVERHANG)
        self.by_directory = job.folder in ("parent", "first", "path")
        self.directory: str | None = None  # of the recording before, and its folder
        self.folder = ""
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
            for number, recording in enumerate(self._chosen(), 1):
                self._place(recording)
                if number % STRIDE == 0:
                    if self.unsure.size >= LOOK_UP:
                        self._look_up(pool)
                    self._sniff(pool)
                    on_listed(self.listed)
                    if self._enough():
                        self.listing_ended = False
                        break
            self._look_up(pool)
            self._sniff(pool)
            on_listed(self.listed)
        wanted = {
            name: max(1, round(f.estimated_s / (60 * self.job.part_minutes)))
            for name, f in self.folders.items()
            if f.planned and name not in self.layout.folders
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

    def _place(self, recording: Recording) -> None:
        """A folder that is new has nothing to look up."""
        folder_name = self._folder(recording)
        if folder_name not in self.layout.folders:
            self._add(folder_name, recording)
        elif folder_name in self.layout.earlier:
            self.unsure.add(folder_name, recording)
        else:
            self.unsure.add(self.layout.part(folder_name, recording.file_name), recording)

    def _look_up(self, pool: ThreadPoolExecutor) -> None:
        """Sort what was not sure into what is done, what failed, and what is to be done.

        Some parts are read ahead of the one whose recordings are sorted.
        """
        unsure, self.unsure = self.unsure, _Pile()
        ahead: deque[_LookedUp] = deque()
        num_ahead = 0
        for group in unsure.groups():
            asked = self._asked(group, unsure.take(group), pool)
            ahead.append(asked)
            num_ahead += len(asked.recordings)
            while num_ahead > LOOKED_UP:
                num_ahead -= len(ahead[0].recordings)
                self._sort_all(ahead.popleft())
        while ahead:
            self._sort_all(ahead.popleft())

    def _asked(
        self, group: Part | str, recordings: Iterable[Recording], pool: ThreadPoolExecutor
    ) -> _LookedUp:
        """Begin to look up the recordings of a part, or of a folder that has grown."""
        candidates: list[tuple[Recording, str, list[Part]]] = []
        names: defaultdict[Part, set[str]] = defaultdict(set)
        parts = [group] if isinstance(group, Part) else []
        for recording in recordings:
            name = recording.file_name
            if not isinstance(group, Part):
                parts = [*self.layout.earlier_parts(group, name), self.layout.part(group, name)]
            candidates.append((recording, name, parts))
            for part in parts:
                names[part].add(name)
        return _LookedUp(
            candidates,
            {part: pool.submit(self._versions, part, some) for part, some in names.items()},
        )

    def _sort_all(self, asked: _LookedUp) -> None:
        known = {part: versions.result() for part, versions in asked.versions.items()}
        for recording, name, parts in asked.recordings:
            part, row = parts[-1], None
            for each in parts:
                if (row := known[each].get(name)) is not None:
                    part = each
                    break
            self._sort(part, recording, name, row)

    def _folder(self, recording: Recording) -> str:
        """The folder, or what stands for it, as of the directory or of a regular expression."""
        key = recording.key
        directory = key[: key.rfind("/") + 1]
        if directory != self.directory or not self.by_directory:  # neighbours share it mostly
            self.directory, self.folder = directory, self._folder_anew(recording.file_name)
        self.recent.append(self.folder)
        return self.folder

    def _folder_anew(self, name: str) -> str:
        folder_name = self.folder_of(name)
        directory = posixpath.dirname(name)
        seen = self.directories.setdefault(folder_name, directory)
        if folder_name == ROOT_FOLDER and not self.by_directory:
            self.unmatched += 1
        if seen != directory and self.job.folder == "parent":
            self.same_name.setdefault(folder_name, (seen, directory))
        return self.partition_of(folder_name)

    def _versions(self, part: Part, names: Collection[str]) -> dict[str, Version]:
        """What the part has of these recordings."""
        there = self.parts_there.get(data_key(part))
        if there is None:
            return {}
        found = versions(read_columns(self.sink, there, IDENTITY_COLUMNS))
        return {name: version for name, version in found.items() if name in names}

    def _sort(self, part: Part, recording: Recording, name: str, row: Version | None) -> None:
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
        self.to_do.add(folder_name, recording)
        folder.planned += 1
        self.planned += 1
        if not recording.replaces:
            self.new += 1
        elif recording.replaces == recording.etag:
            self.again += 1
        else:
            self.changed += 1

    def _enough(self) -> bool:
        """Whether --limit is reached, and the folders that it took from are listed to the end."""
        if self.job.limit is None or self.planned < self.job.limit:
            return False
        return not any(self.folders[n].planned for n in self.folders.keys() & set(self.recent))

    def _shards(self, counts: Mapping[str, int]) -> Iterator[Shard]:
        """Parts in order of their names, several together until a shard is worth its while."""
        target_s = 60 * self.job.part_minutes * SMALL_PARTS
        index, waiting_s = 0, 0.0
        waiting: list[tuple[Part, tuple[Recording, ...]]] = []
        for folder_name in sorted(self.to_do.groups()):
            by_part = self._by_part(folder_name, counts[folder_name])
            for part in sorted(by_part.groups()):
                recordings = tuple(by_part.take(part))
                if not part.belongs_to(self.job.shard_index, self.job.shard_count):
                    self.elsewhere += len(recordings)
                    continue
                part_s = sum(map(estimate_s, recordings))
                if waiting and waiting_s + part_s > target_s:
                    yield Shard(index, tuple(waiting))
                    index, waiting, waiting_s = index + 1, [], 0.0
                waiting.append((part, recordings))
                waiting_s += part_s
        if waiting:
            yield Shard(index, tuple(waiting))

    def _by_part(self, folder_name: str, count: int) -> _Pile[Part]:
        """What is to be done of a folder."""
        earlier = self.folders.pop(folder_name).earlier
        only = Part(folder_name, 0, 1) if count == 1 else None
        found: _Pile[Part] = _Pile()
        for recording in self.to_do.take(folder_name):
            name = recording.file_name
            found.add(earlier.get(name) or only or Part.of(folder_name, name, count), recording)
        return found


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
