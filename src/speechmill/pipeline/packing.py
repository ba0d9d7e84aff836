"""What is to be done, held in little memory, and packed into shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from speechmill.job import Job
from speechmill.pipeline.selection import estimate_s
from speechmill.records import Part, Recording, Shard, pack, unpack

__all__ = ["PackedGroups", "ToDo"]

LOOSE: Final = 10_000
"""Recordings that are held as such before they are packed."""

FEW: Final = 3
"""Recordings of a group that are worth packing: fewer take long and save little."""

SMALL_PARTS: Final = 0.5
"""Of a full part: so much audio small parts bring together to make a shard."""

G = TypeVar("G")  # what recordings are grouped by


class PackedGroups(Generic[G]):
    """Recordings in groups. All but the last few thousand, and very small groups, are packed."""

    def __init__(self) -> None:
        self._packed: defaultdict[G, list[bytes]] = defaultdict(list)
        self._few: dict[G, list[Recording]] = {}
        self._new: defaultdict[G, list[Recording]] = defaultdict(list)
        self._num_new = 0
        self.size = 0

    def add(self, group: G, recording: Recording) -> None:
        """Take one more recording."""
        self._new[group].append(recording)
        self._num_new += 1
        self.size += 1
        if self._num_new == LOOSE:
            self._pack()

    def _pack(self) -> None:
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
    """A folder that has something to be done. ``estimated_s`` is of all that is listed, also beyond
    --limit; ``earlier`` are the parts of rows that are from before the folder grew."""

    planned: int = 0
    estimated_s: float = 0.0
    earlier: dict[str, Part] = field(default_factory=dict)


class ToDo:
    """The recordings that are to be done, up to the job's limit.

    Of the ``planned`` ones some are ``new`` and others ``changed``; the rest are the same bytes
    ``again``. ``elsewhere`` are those whose parts are other builds', by ``shard_index``.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folders: defaultdict[str, _Folder] = defaultdict(_Folder)
        self._recordings: PackedGroups[str] = PackedGroups()
        self.planned = self.new = self.changed = self.again = self.elsewhere = 0

    def stays_in(self, part: Part, name: str) -> None:
        """Keep a recording's part, which is from before its folder grew."""
        self._folders[part.folder_name].earlier[name] = part

    def take(self, folder_name: str, recording: Recording) -> bool:
        """Take one more, if the limit is not reached."""
        folder = self._folders[folder_name]
        folder.estimated_s += estimate_s(recording)
        if self._is_full():
            return False
        self._recordings.add(folder_name, recording)
        folder.planned += 1
        self.planned += 1
        if not recording.replaces:
            self.new += 1
        elif recording.replaces == recording.etag:
            self.again += 1
        else:
            self.changed += 1
        return True

    def _is_full(self) -> bool:
        return self._job.limit is not None and self.planned >= self._job.limit

    def is_enough(self, recent: Collection[str]) -> bool:
        """Whether the limit is reached, and none of the folders that were taken from is among the
        recent ones: they are listed to the end."""
        if not self._is_full():
            return False
        return not any(self._folders[n].planned for n in self._folders.keys() & set(recent))

    def part_counts(self) -> dict[str, int]:
        """How many parts each folder with something to be done would have if it were new."""
        full_s = 60 * self._job.part_minutes
        return {
            name: max(1, round(folder.estimated_s / full_s))
            for name, folder in self._folders.items()
            if folder.planned
        }

    def shards(self, counts: Mapping[str, int]) -> Iterator[Shard]:
        """Give away all recordings: parts in order of their names, several of them together until a
        shard is worth its while. ``counts`` says how many parts a folder has."""
        target_s = 60 * self._job.part_minutes * SMALL_PARTS
        index, waiting_s = 0, 0.0
        waiting: list[tuple[Part, tuple[Recording, ...]]] = []
        for folder_name in sorted(self._recordings.groups()):
            by_part = self._by_part(folder_name, counts[folder_name])
            for part in sorted(by_part.groups()):
                recordings = tuple(by_part.take(part))
                if not part.belongs_to(self._job.shard_index, self._job.shard_count):
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

    def _by_part(self, folder_name: str, count: int) -> PackedGroups[Part]:
        """What is to be done of a folder."""
        earlier = self._folders.pop(folder_name).earlier
        only = Part(folder_name, 0, 1) if count == 1 else None
        found: PackedGroups[Part] = PackedGroups()
        for recording in self._recordings.take(folder_name):
            name = recording.file_name
            found.add(earlier.get(name) or only or Part.of(folder_name, name, count), recording)
        return found
