"""What the dataset has of the recordings that are listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from speechmill.ahead import ahead
from speechmill.dataset.commit import Version, versions
from speechmill.dataset.layout import FAILURES, Layout, data_key
from speechmill.dataset.reader import list_parts, read_columns, scan
from speechmill.dataset.schema import IDENTITY_COLUMNS
from speechmill.pipeline.packing import PackedGroups
from speechmill.records import Part, Recording
from speechmill.storage import Store

__all__ = ["FailedBefore", "Found", "Lookup"]

LOOKED_UP: Final = 10_000
"""Recordings that are looked up at the same time, so that memory is bounded."""

GROUPS: Final = 16
"""Groups that are looked up at the same time: as many as there are requests."""


@dataclass(frozen=True, slots=True)
class Found:
    """A recording, by name; its part, and the version that the part has a row of, if any."""

    recording: Recording
    name: str
    part: Part
    row: Version | None


@dataclass(frozen=True, slots=True)
class FailedBefore:
    """The version of a recording that has failed, at which stage, and the key of the file that
    says so."""

    version: Version | None = None
    stage: str = ""
    key: str = ""


NOT_FAILED: Final = FailedBefore()

_Question = list[tuple[Recording, str, list[Part]]]
"""Recordings, each with its name and the parts that it may be in; it belongs to the last one."""


class Lookup:
    """Looks recordings up in the dataset, many at once, by the parts they belong to.

    Args:
        sink: where the dataset is.
        layout: the number of parts of its folders.
        pool: the threads that read the parts.
    """

    def __init__(self, sink: Store, layout: Layout, pool: ThreadPoolExecutor) -> None:
        self._sink, self._layout, self._pool = sink, layout, pool
        self._parts_there = {o.key: o for o in list_parts(sink)}
        self._failures = dict(_failures(sink))
        self._waiting: PackedGroups[Part | str] = PackedGroups()

    @property
    def num_waiting(self) -> int:
        """How many recordings are to be looked up."""
        return self._waiting.size

    def add(self, folder_name: str, recording: Recording) -> None:
        """Have a recording looked up, whose folder the dataset has."""
        if folder_name in self._layout.earlier:
            self._waiting.add(folder_name, recording)
        else:
            part = self._layout.part(folder_name, recording.file_name)
            self._waiting.add(part, recording)

    def failure(self, name: str) -> FailedBefore:
        """How a recording failed before; with no version where it did not."""
        return self._failures.get(name, NOT_FAILED)

    def found(self) -> Iterator[Found]:
        """Look up all that is waiting. Some parts are read ahead of what is yielded."""
        waiting, self._waiting = self._waiting, PackedGroups()
        questions = (self._question(g, waiting.take(g)) for g in waiting.groups())
        with ThreadPoolExecutor(GROUPS, thread_name_prefix="look up") as asking:
            for question, known in ahead(
                questions,
                lambda question: asking.submit(self._ask, question),
                most=LOOKED_UP,
                cost=len,
                most_cost=LOOKED_UP,
            ):
                for recording, name, parts in question:
                    part = next((p for p in parts if name in known[p]), parts[-1])
                    yield Found(recording, name, part, known[part].get(name))

    def _question(self, group: Part | str, recordings: Iterable[Recording]) -> _Question:
        """Of the recordings of a part, or of a folder that has grown."""
        question: _Question = []
        parts = [group] if isinstance(group, Part) else []
        for recording in recordings:
            name = recording.file_name
            if not isinstance(group, Part):
                parts = [*self._layout.earlier_parts(group, name), self._layout.part(group, name)]
            question.append((recording, name, parts))
        return question

    def _ask(self, question: _Question) -> dict[Part, dict[str, Version]]:
        names: defaultdict[Part, set[str]] = defaultdict(set)
        for _, name, parts in question:
            for part in parts:
                names[part].add(name)
        read = self._pool.map(self._versions, names.keys(), names.values())
        return dict(zip(names, read, strict=True))

    def _versions(self, part: Part, names: Collection[str]) -> dict[str, Version]:
        """What the part has of these recordings."""
        there = self._parts_there.get(data_key(part))
        if there is None:
            return {}
        found = versions(read_columns(self._sink, there, IDENTITY_COLUMNS))
        return {name: version for name, version in found.items() if name in names}


def _failures(sink: Store) -> Iterator[tuple[str, FailedBefore]]:
    for part, table in scan(sink, [*IDENTITY_COLUMNS, "stage"], FAILURES):
        stages = dict(zip(table["file_name"].to_pylist(), table["stage"].to_pylist(), strict=True))
        for name, version in versions(table).items():
            yield name, FailedBefore(version, stages[name], part.key)
