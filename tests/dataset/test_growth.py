"""Folders that get more parts while others write: each recording once, whoever knows what."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speechmill
from speechmill.dataset.commit import commit, versions
from speechmill.dataset.growth import grow, place, place_anew, read_versions
from speechmill.dataset.layout import Layout, agree_on_parts, change_layout, read_layout
from speechmill.dataset.reader import list_parts, read_columns
from speechmill.dataset.schema import IDENTITY_COLUMNS, row_schema
from speechmill.dataset.summary import failed_recordings
from speechmill.dataset.swap import update
from speechmill.job import Job
from speechmill.records import Failure, Part, Recording
from speechmill.storage import Store, open_store
from tests.support.harness import Command, Place, corpus, fill_folder, recording
from tests.support.rows import rows

P = ParamSpec("P")
R = TypeVar("R")

GROWTH = "speechmill.dataset.growth"
STEPS = ("write", "write", "plan", "late", "look", "grow", "half")
FOLDER = "p225"
NAMES = [f"p225/{i}.wav" for i in range(12)]


def held(store: Store) -> Counter[str]:
    """How many parts hold each recording."""
    found: Counter[str] = Counter()
    for part in list_parts(store):
        found.update(versions(read_columns(store, part, IDENTITY_COLUMNS)).keys())
    return found


class Writer:
    """Who commits recordings, knowing of the layout what it was when it last looked."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.layout = read_layout(store)

    def look(self) -> None:
        self.layout = read_layout(self.store)

    def plan(self, name: str) -> Part:
        known = {
            part: read_versions(self.store, part)
            for part in self.layout.earlier_parts(FOLDER, name)
        }
        return place(self.layout, FOLDER, [name], known)[name]

    def commit(self, part: Part, name: str, version: int) -> None:
        table = rows([Recording(name, 1, f"e{version}", version)], folder_name=FOLDER)
        made = commit(
            self.store, part, table, [], recipe="r1", replaces={}, is_current=lambda: True
        )
        if made.refused:
            anew = place_anew(self.store, part, made.refused, row_schema(()))
            self.commit(anew[name], name, version)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_each_recording_is_in_one_part_for_ever(data: st.DataObject) -> None:
    store = open_store(f"memory://{uuid4().hex}")
    agree_on_parts(store, {FOLDER: 1})
    writers = [Writer(store) for _ in range(3)]
    wanted: dict[str, int] = {}
    late: list[tuple[Writer, Part, str, int]] = []
    for step in range(data.draw(st.integers(1, 25))):
        writer = data.draw(st.sampled_from(writers))
        match data.draw(
            st.sampled_from(["write", "write", "plan", "late", "look", "grow", "half"])
        ):
            case "write":
                name = data.draw(st.sampled_from(NAMES))
                writer.commit(writer.plan(name), name, step)
                wanted[name] = step
            case "plan":
                name = data.draw(st.sampled_from(NAMES))
                late.append((writer, writer.plan(name), name, step))
            case "late" if late:  # and perhaps out of date by now
                writer, part, name, version = late.pop(0)
                writer.commit(part, name, version)
                wanted[name] = max(version, wanted.get(name, 0))
            case "look":
                writer.look()
            case "grow":
                grow(store, FOLDER, writer.layout.folders[FOLDER], row_schema(()))
            case "half":  # cut short behind one of its steps
                cut = data.draw(st.integers(1, 4))
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(f"{GROWTH}.update", _only(cut, update))
                    patch.setattr(f"{GROWTH}.change_layout", _only(cut, change_layout))
                    with contextlib.suppress(KeyboardInterrupt):
                        grow(store, FOLDER, writer.layout.folders[FOLDER], row_schema(()))
        assert held(store) == Counter(wanted.keys())
    for name, version in wanted.items():
        found = [
            versions(read_columns(store, part, IDENTITY_COLUMNS)).get(name)
            for part in list_parts(store)
        ]
        assert [v.modified_us for v in found if v is not None] == [version]


def _only(count: int, function: Callable[P, R]) -> Callable[P, R]:
    left = [count]

    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return function(*args, **kwargs)

    return limited


def test_a_layout_that_has_grown_is_read_as_it_was_written() -> None:
    store = open_store(f"memory://{uuid4().hex}")
    agree_on_parts(store, {FOLDER: 2, "p226": 1})
    assert grow(store, FOLDER, 2, row_schema(())) == read_layout(store)
    assert read_layout(store) == Layout({FOLDER: 8, "p226": 1}, {FOLDER: (2,)}, {})
    assert grow(store, FOLDER, 2, row_schema(())).folders[FOLDER] == 8  # once
    grow(store, FOLDER, 8, row_schema(()))
    assert read_layout(store).earlier == {FOLDER: (2, 8)}
    assert agree_on_parts(store, {"p227": 3}).earlier == {FOLDER: (2, 8)}


def test_failures_go_along_and_find_their_end(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    agree_on_parts(store, {FOLDER: 1})
    part = Part(FOLDER, 0, 1)
    failed = [
        Failure(Recording(name, 1, "e", 1), FOLDER, "decode", "NotAudioError", "text")
        for name in NAMES
    ]
    empty = rows([], folder_name=FOLDER)
    commit(store, part, empty, failed, recipe="r1", replaces={}, is_current=lambda: True)
    layout = grow(store, FOLDER, 1, row_schema(()))
    assert sorted(f.file_name for f in failed_recordings(store)) == sorted(NAMES)
    for name in NAMES:
        table = rows([Recording(name, 1, "e2", 2)], folder_name=FOLDER)
        commit(
            store, layout.part(FOLDER, name), table, [],
            recipe="r1", replaces={}, is_current=lambda: True,
        )  # fmt: skip
    assert failed_recordings(store) == []


def test_a_build_goes_on_in_a_folder_that_has_grown(tmp_path: Path) -> None:
    files = corpus(1, 12)
    source = fill_folder(tmp_path / "source", dict(list(files.items())[:6]))
    job = Job(source=source.url, sink=str(tmp_path / "sink"), transcriber="fake")
    assert speechmill.build(job).rows == 6
    store = open_store(job.sink)
    grow(store, "p00", 1, row_schema(()))
    assert speechmill.plan(job).done == 6
    fill_folder(tmp_path / "source", dict(list(files.items())[3:]))  # three of them anew
    made = speechmill.plan(job)
    assert (made.done, made.new, made.changed) == (3, 6, 3)
    assert speechmill.build(job).rows == 9
    assert speechmill.plan(job).num_recordings == 0
    assert held(store) == Counter(files.keys())
    assert len(list_parts(store)) > 2


def test_the_command_gives_more_parts_to_folders_that_need_them(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "source", {**corpus(2, 12), "p09/one.wav": recording(1)})
    job = Job(source=source.url, sink=str(tmp_path / "sink"), transcriber="fake")
    assert speechmill.build(job).rows == 25
    before = Place(job.sink).dataset_rows()
    for said in ("2 folders have more parts now", "0 folders have more parts now"):
        done = Command("repartition", job.sink, "--part-minutes", "0.01").finish()
        assert done.code == 0
        assert said in done.err
        assert done.out.count("1 → 4 parts") == (2 if said.startswith("2") else 0)
        assert Place(job.sink).dataset_rows().equals(before)
    assert speechmill.plan(job).num_recordings == 0
    assert "--by needs OUT" in Command("repartition", job.sink, "--by", "language").finish().err
