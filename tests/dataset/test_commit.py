"""Exactly one row, whatever happens: crashes, lost replies, zombies, changed recordings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from speechmill.dataset.commit import commit, merge_rows, read_part, versions
from speechmill.dataset.layout import data_key, failures_key
from speechmill.dataset.reader import list_parts
from speechmill.dataset.state import Claim, agree_on_source, current_recipe
from speechmill.dataset.swap import update
from speechmill.errors import ConflictError, NotFoundError, UnavailableError
from speechmill.job import Job
from speechmill.pipeline.cleanup import tidy
from speechmill.pipeline.planner import Plan, make_plan
from speechmill.recipe import Recipe
from speechmill.records import Failure, Part, Recording, Shard
from speechmill.storage import Blob, Object, Store, open_store
from tests.support.rows import rows

RECIPE = Recipe({"made": "first"})
OTHER_RECIPE = Recipe({"made": "otherwise"})
NAMES = ["a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav"]
names = st.sampled_from(NAMES)
counter = itertools.count()


class Died(Exception):
    """The process was killed here."""


class Rough:
    """A store in which a put may die before or after it, lose its reply, or be overtaken."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.url = store.url
        self.mishaps: list[str | Callable[[], object]] = []

    def list(self, prefix: str = "") -> Iterator[Object]:
        return self.store.list(prefix)

    def get(self, key: str) -> Blob:
        return self.store.get(key)

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        return self.store.read(key, start, length, etag=etag)

    def head(self, key: str) -> Object:
        return self.store.head(key)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def check(self) -> None:
        self.store.check()

    def put_file(self, key: str, path: Path) -> None:
        self.store.put_file(key, path)

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        mishap = self.mishaps.pop(0) if self.mishaps else None
        if callable(mishap):  # somebody else commits between our read and our put
            mishap()
        if mishap == "dies before":
            raise Died
        tag = self.store.put(key, data, if_absent=if_absent, if_etag=if_etag)
        if mishap == "dies after":
            raise Died
        if mishap == "reply lost":  # the client's retry meets its own success
            raise ConflictError("412")
        return tag


mishaps = st.lists(st.sampled_from(["none", "dies before", "dies after", "reply lost"]), max_size=3)


class ExactlyOneRow(RuleBasedStateMachine):
    """Builds that overlap, die, linger and come late, against what the dataset must hold."""

    plans: Bundle[Plan] = Bundle("plans")

    @initialize()
    def empty_sink(self) -> None:
        number = next(counter)
        self.source = open_store(f"memory://source-{number}")
        self.sink = Rough(open_store(f"memory://sink-{number}"))
        self.job = Job(source=self.source.url, sink=self.sink.url)
        self.recipe = RECIPE
        self.now_us = 1_000
        self.present: dict[str, Recording] = {}
        self.ever_done: set[str] = set()
        self.unreadable: set[tuple[str, str]] = set()
        self._agree()
        self._upload("a/1.wav", 1, broken=False)

    def _agree(self) -> None:
        claim = Claim(source_url=self.source.url, folder="parent", recipe=self.recipe, rebuild=True)
        agree_on_source(self.sink.store, claim)

    def _plan(self) -> Plan:
        """Plan with the real planner over a listing of what is present."""
        lister = cast("Store", _Listing(self.source, list(self.present.values())))
        return make_plan(self.job, lister, self.sink.store, self.recipe.id, settle=lambda: None)

    @rule(name=names, age=st.sampled_from([0, 1, 1, 1, -500]), broken=st.booleans())
    def upload(self, name: str, age: int, broken: bool) -> None:
        """A new version of a recording; sometimes an older one is put back, or a broken one."""
        self._upload(name, age, broken)

    def _upload(self, name: str, age: int, broken: bool) -> None:
        self.now_us += max(age, 0)
        self.present[name] = Recording(
            name, 10 + next(counter) % 3, f"e{next(counter)}", self.now_us + age
        )
        if broken:
            self.unreadable.add((name, self.present[name].etag))

    @rule(target=plans)
    def a_build_plans(self) -> Plan:
        plan = self._plan()
        tidy(self.sink.store, plan)
        return plan

    @rule()
    def another_recipe(self) -> None:
        self.recipe = OTHER_RECIPE if self.recipe is RECIPE else RECIPE
        self._agree()

    @rule(
        plan=plans,
        pick=st.randoms(use_true_random=False),
        troubles=mishaps,
        recipe=st.sampled_from([RECIPE, OTHER_RECIPE]),
    )
    def a_worker_commits(
        self, plan: Plan, pick: object, troubles: list[str], recipe: Recipe
    ) -> None:
        """Any part of any plan, however old; the worker may be of another recipe, and may die."""
        self._commit_some(plan, pick, list(troubles), recipe)

    @rule(one=plans, other=plans, pick=st.randoms(use_true_random=False))
    def two_workers_meet(self, one: Plan, other: Plan, pick: object) -> None:
        def overtake() -> None:
            self.sink.mishaps.clear()
            self._commit_some(other, pick, [], self.recipe)

        self._commit_some(one, pick, [overtake], self.recipe)

    @rule(plan=consumes(plans))
    def a_plan_is_forgotten(self, plan: Plan) -> None:
        pass

    def _commit_some(
        self, plan: Plan, pick: object, troubles: list[str | Callable[[], object]], recipe: Recipe
    ) -> None:
        work = [item for shard in plan.shards for item in shard.parts]
        if not work:
            return
        part, recordings = pick.choice(work)  # type: ignore[attr-defined]
        some = [r for r in recordings if pick.random() < 0.7]  # type: ignore[attr-defined]
        self.sink.mishaps = troubles
        try:
            self._commit(part, some, recipe)
        except Died:
            pass
        finally:
            self.sink.mishaps = []

    def _commit(self, part: Part, recordings: list[Recording], recipe: Recipe) -> None:
        good = [r for r in recordings if (r.key, r.etag) not in self.unreadable]
        bad = [r for r in recordings if (r.key, r.etag) in self.unreadable]
        commit(
            self.sink,
            part,
            rows(good, recipe.id, part.folder_name),
            [Failure(r, part.folder_name, "decode", "DamagedError", "broken") for r in bad],
            recipe=recipe.id,
            replaces={r.file_name: r.replaces for r in good},
            is_current=lambda: current_recipe(self.sink.store) == recipe.id,
        )

    def _rows(self, root: str) -> list[str]:
        return [
            name
            for part in list_parts(self.sink.store, root)
            for name in read_part(part.key, self.sink.get(part.key).data)["file_name"].to_pylist()
        ]

    @invariant()
    def no_recording_twice_and_none_gone(self) -> None:
        there, failed = self._rows("data"), self._rows("failures")
        assert len(there) == len(set(there))
        assert len(failed) == len(set(failed))
        self.ever_done |= set(there)
        assert self.ever_done <= {*there, *failed}

    def teardown(self) -> None:
        """A last build that nothing disturbs: all is there, once, of the present version."""
        if not hasattr(self, "sink"):
            return
        for _ in range(2):
            plan = self._plan()
            tidy(self.sink.store, plan)
            for shard in plan.shards:
                for part, recordings in shard.parts:
                    self._commit(part, list(recordings), self.recipe)
        plan = self._plan()
        assert plan.num_recordings == 0
        assert not plan.stale_failures
        assert not plan.outdated_rows
        there, failed = self._rows("data"), self._rows("failures")
        assert sorted([*there, *failed]) == sorted(self.present)
        for name, recording in self.present.items():
            assert (name in failed) == ((name, recording.etag) in self.unreadable)
        for listed in list_parts(self.sink.store):
            for name, version in versions(
                read_part(listed.key, self.sink.get(listed.key).data)
            ).items():
                assert version.etag == self.present[name].etag
                assert version.recipe == self.recipe.id


class _Listing:
    """A store that lists these recordings."""

    def __init__(self, store: Store, recordings: list[Recording]) -> None:
        self.url = store.url
        self.recordings = recordings

    def list(self, prefix: str = "") -> Iterator[Object]:
        for r in self.recordings:
            yield Object(r.key, r.size, r.etag, r.modified_us)


TestExactlyOneRow = ExactlyOneRow.TestCase
TestExactlyOneRow.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

recordings = st.builds(
    Recording,
    key=st.sampled_from(["x", "y", "z"]),
    size=st.integers(1, 2),
    etag=st.sampled_from(["1", "2"]),
    modified_us=st.integers(0, 3),
)
parts = st.lists(recordings, max_size=3, unique_by=lambda r: r.key)


@given(old=parts, new=parts, old_recipe=st.sampled_from("rs"), current=st.booleans())
def test_merging_the_same_rows_again_changes_nothing(
    old: list[Recording], new: list[Recording], old_recipe: str, current: bool
) -> None:
    def merge(table: pa.Table | None) -> pa.Table | None:
        return merge_rows(table, rows(new), replaces={}, is_current=lambda: current)

    before = rows(old, old_recipe) if old else None
    once = merge(before)
    if once is None:
        return
    assert merge(once) is None
    merged = once["file_name"].to_pylist()
    assert merged == sorted({r.key for r in [*old, *new]})


@given(old=parts, new=parts)
def test_an_older_version_never_replaces_a_newer_one(
    old: list[Recording], new: list[Recording]
) -> None:
    merged = merge_rows(rows(old) if old else None, rows(new), replaces={}, is_current=lambda: True)
    after = versions(merged if merged is not None else rows(old))
    for recording in old:
        assert after[recording.key].modified_us >= recording.modified_us


def test_a_restored_older_file_replaces_the_row_that_the_plan_saw() -> None:
    newer = Recording("x", 1, "new", 10)
    restored = Recording("x", 1, "old", 5, replaces="new")
    merged = merge_rows(
        rows([newer]), rows([restored]), replaces={"x": "new"}, is_current=lambda: True
    )
    assert merged is not None
    assert versions(merged)["x"].etag == "old"


def test_update_gives_up_with_an_error_when_others_never_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("speechmill.dataset.swap.FIRST_WAIT_S", 0.0)
    sink = Rough(open_store(f"memory://busy-{next(counter)}"))
    sink.mishaps = [lambda: sink.store.put("k", str(next(counter)).encode())] * 1000
    with pytest.raises(ConflictError, match="another program"):
        update(sink, "k", lambda data: (data or b"") + b"x")


def test_a_store_that_is_down_ends_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Rough(open_store(f"memory://down-{next(counter)}"))

    def down(*_: object, **__: object) -> str:
        raise UnavailableError("503")

    monkeypatch.setattr(sink, "put", down)
    part = Part("p1", 0, 1)
    with pytest.raises(UnavailableError):
        commit(
            sink, part, rows([Recording("x", 1, "e", 1)]), [],
            recipe="r1", replaces={}, is_current=lambda: True,
        )  # fmt: skip
    with pytest.raises(NotFoundError):
        sink.get(data_key(part))


def test_attempts_count_failures_of_the_same_bytes_only() -> None:
    sink = open_store(f"memory://attempts-{next(counter)}")
    part = Part("p1", 0, 1)
    first = Recording("x", 1, "e1", 1)

    def fail(recording: Recording) -> int:
        failure = Failure(recording, "p1", "fetch", "StorageError", "no")
        commit(
            sink, part, rows([]), [failure],
            recipe="r1", replaces={}, is_current=lambda: True,
        )  # fmt: skip
        table = read_part("", sink.get(failures_key(part)).data)
        assert table.num_rows == 1
        return int(table["attempts"][0].as_py())

    assert [fail(first), fail(first), fail(replace(first, etag="e2", modified_us=2))] == [1, 2, 1]


def test_a_shard_counts_its_recordings_and_bytes() -> None:
    shard = Shard(0, ((Part("a", 0, 1), (Recording("x", 5, "", 0), Recording("y", 7, "", 0))),))
    assert (shard.num_recordings, shard.num_bytes) == (2, 12)
