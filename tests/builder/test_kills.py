"""A build that is killed at any moment, and one that is watched: nothing lost, nothing double."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from speechmill.dataset.layout import OWN_PREFIXES
from tests.support.chaos import Chaos
from tests.support.harness import (
    Bucket,
    Build,
    Finished,
    Place,
    Poller,
    Watched,
    assert_same_dataset,
    corpus,
    ended,
    fill_folder,
    recording,
)
from tests.support.killing import age_leftovers, killed_and_finished, state_of
from tests.support.services import SeaweedFS

KILLS, MANY_KILLS = 6, 60
MANY_ROUNDS = 10_000
FILES = corpus(20, 4, broken=4)
DONE_WITH_FAILURES = 3
# A build takes so long for its work that the kills come in its midst, one after the other.
WORK_S = 0.8
LONGEST_S = 4.0


def slow_s(kills: int) -> float:
    """Seconds a recording."""
    return max(4.0, kills * WORK_S / 3) / len(FILES)


# Requests of a build, by what it is about when it makes them.
PHASES = {
    "commit of rows": r"PUT .*/data/",
    "commit of failures": r"PUT .*/failures/",
    "check": r"/_speechmill/check|PUT .*/source\.json|PUT .*/recipes/",
    "listing": r"GET /src\?.*list-type",
    "planning": r"GET /dst\?.*list-type|PUT .*/layout\.json",
    "fetching": r"GET /src/",
    "reading the sink": r"GET /dst/",
    "logging": r"PUT .*/runs/",
}

AIMS = (
    "after commit of rows",
    "after planning",
    "before commit of failures",
    "after fetching",
    "before commit of rows",
    "after commit of failures",
    "after listing",
    "after check",
)


def phase(request: str) -> str:
    return next((name for name, sign in PHASES.items() if re.search(sign, request)), "other")


@pytest.fixture(scope="module")
def bucket(object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(object_store, tmp_path_factory.mktemp("profile"))


@pytest.fixture(autouse=True)
def _profile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def proxy(object_store: SeaweedFS) -> Iterator[Watched]:
    with Watched(object_store.endpoint_url) as running:
        yield running


class Killer:
    """Kills a build at a request of some phase, before the store hears of it or once it is done."""

    def __init__(self, proxy: Watched) -> None:
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self._aim, self._nth = "", 0
        self.hits: Counter[str] = Counter()
        self.last = ""
        self.heard = threading.Event()
        proxy.hear = self._hear

    def aim(self, kill: Callable[[], None], aim: str, nth: int) -> None:
        with self._lock:
            self._kill, self._aim, self._nth = kill, aim, nth

    def rest(self) -> None:
        """Aim at nothing more, and wait for a new build's first request."""
        with self._lock:
            self._kill, self.last = None, "start"
            self.heard.clear()

    def _hear(self, request: str, when: str) -> None:
        with self._lock:
            self.last = phase(request)
            self.heard.set()
            if self._kill is None or f"{when} {self.last}" != self._aim:
                return
            self._nth -= 1
            if self._nth < 0:
                self._kill()
                self._kill = None
                self.hits[self._aim] += 1


def to_the_end(start: Callable[[], Build]) -> Finished:
    """Build twice: what was in hand at kill after kill may have been set aside as their cause (on a
    busy machine none of thirty builds came to a commit), and is tried again."""
    start().finish()
    return start().finish()


def count_left_over(killed: Place, whole: Place, chaos: Chaos) -> None:
    """All that an undisturbed build leaves is there; what else is there, is shown and counted."""
    there, expected = state_of(killed), state_of(whole)
    assert expected <= there
    print("left over:", sorted(there - expected))  # noqa: T201
    chaos.count("objects left over", len(there - expected))


@pytest.mark.timeout(900)
def test_bucket_to_bucket_killed_at_any_moment_ends_as_undisturbed(
    bucket: Bucket, proxy: Watched, chaos: Chaos
) -> None:
    """Half of the kills come at a moment drawn by time, half at a request of a certain phase."""
    source = bucket.fill("kills", FILES)
    whole, killed = bucket.place("s3://dst/kills/whole"), bucket.place("s3://dst/kills/killed")
    through = ("--endpoint-url", proxy.endpoint_url)
    undisturbed = Build(source.url, whole.url, *through).finish()
    assert undisturbed.code == DONE_WITH_FAILURES, undisturbed.err
    at_s = [at - proxy.log[0][0] for at, _ in proxy.log]
    planning_s = next(
        at for at, (_, request) in zip(at_s, proxy.log, strict=True) if phase(request) == "fetching"
    )

    draw = random.Random(chaos.seed)
    kills = chaos.choose(KILLS, MANY_KILLS)
    killer = Killer(proxy)
    by_time: Counter[str] = Counter()
    with Poller(killed) as poller:
        for number in range(kills):
            killer.rest()
            build = Build(source.url, killed.url, *through, seconds=slow_s(kills))
            with ended(build):
                if number % 2:
                    killer.aim(build.kill, AIMS[number // 2 % len(AIMS)], draw.randrange(2))
                    delay_s = LONGEST_S
                else:
                    delay_s = draw.uniform(-0.2, planning_s + WORK_S)
                if delay_s > 0:
                    killer.heard.wait(10)
                    build.finish_after(build.age_s + delay_s)
                else:
                    build.finish_after(-5 * delay_s)
                if build.running:
                    by_time[killer.last] += 1
                    build.kill()
                assert build.finish().code in {-9, DONE_WITH_FAILURES}
        killer.rest()
        finished = to_the_end(partial(Build, source.url, killed.url, *through))
    print(f"by request: {dict(killer.hits)}; by time: {dict(by_time)}; {poller.polls} polls")  # noqa: T201
    assert finished.code == DONE_WITH_FAILURES, finished.err
    assert killer.hits.total() + by_time.total() >= kills * 0.75
    assert sum(n for at, n in killer.hits.items() if "commit" in at) >= kills // 12
    assert not poller.wrong
    assert_same_dataset(killed, whole, attempts=False)
    count_left_over(killed, whole, chaos)
    chaos.count("kills", killer.hits.total() + by_time.total())
    chaos.count("looks at the sink", poller.polls)


@pytest.mark.timeout(900)
def test_folder_to_folder_killed_at_any_moment_ends_as_undisturbed(
    tmp_path: Path, chaos: Chaos
) -> None:
    source = fill_folder(tmp_path / "corpus", FILES)
    whole, killed = Place(str(tmp_path / "whole")), Place(str(tmp_path / "killed"))
    undisturbed = Build(source.url, whole.url).finish()
    assert undisturbed.code == DONE_WITH_FAILURES, undisturbed.err

    draw = random.Random(chaos.seed)
    kills = chaos.choose(KILLS, MANY_KILLS) // 2
    hits, parts = 0, []
    with Poller(killed) as poller:
        for number in range(kills):
            build = Build(source.url, killed.url, seconds=slow_s(kills))
            # However slow the machine is, some are killed only when they have committed something.
            where = "data" if number % 5 == 4 else "_speechmill/staged"
            with ended(build):
                _wait_for_a_change(tmp_path / "killed" / where, build)
                build.finish_after(build.age_s + draw.uniform(0.0, WORK_S))
                hits += build.running
                build.kill()
                assert build.finish().code in {-9, DONE_WITH_FAILURES}
            files = [p for p in (tmp_path / "killed" / "data").rglob("*") if p.is_file()]
            assert all(re.fullmatch(r"part-\d+-of-\d+\.parquet", p.name) for p in files)
            parts.append(len(files))
        finished = to_the_end(partial(Build, source.url, killed.url))
    print(f"{hits} of {kills} kills; parts after each: {parts}; {poller.polls} polls")  # noqa: T201
    assert finished.code == DONE_WITH_FAILURES, finished.err
    assert hits >= kills * 0.75
    assert not poller.wrong
    assert_same_dataset(killed, whole, attempts=False)
    assert {p.name for p in (tmp_path / "killed").iterdir()} == set(OWN_PREFIXES)
    age_leftovers(killed)
    assert Build(source.url, killed.url).finish().code in {0, DONE_WITH_FAILURES}
    count_left_over(killed, whole, chaos)
    chaos.count("kills", hits)
    chaos.count("looks at the sink", poller.polls)


def _wait_for_a_change(folder: Path, build: Build) -> None:
    """Wait until something is written there: the build has come to its sink."""

    def changed() -> int:
        return folder.stat().st_mtime_ns if folder.exists() else 0

    before = changed()
    while changed() == before and build.running:
        build.finish_after(build.age_s + 0.01)


@pytest.fixture(params=["bucket", "folder"])
def places(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> tuple[Place, Place]:
    """A filled source, and a sink."""
    if request.param == "folder":
        return fill_folder(tmp_path / "corpus", FILES), Place(str(tmp_path / "sink"))
    return bucket.fill("polled", FILES), bucket.place("s3://dst/polled")


@pytest.mark.slow
def test_a_reader_never_misses_a_row_while_recordings_and_recipes_change(
    places: tuple[Place, Place], bucket: Bucket
) -> None:
    source, sink = places
    options = () if sink.endpoint_url is None else ("--endpoint-url", sink.endpoint_url)
    good = sorted(name for name in FILES if re.fullmatch(r".*_\d+\.wav", name))
    with Poller(sink, pause_s=0.02) as poller:
        assert Build(source.url, sink.url, *options).finish().code == DONE_WITH_FAILURES
        first = set(sink.names())
        changed = good[::2]
        for seed, name in enumerate(changed):
            source.store.put(name, recording(10**6 + seed, 0.7))
        build = Build(source.url, sink.url, *options, seconds=0.01)
        with ended(build):  # also while it reads what is changed once more
            build.finish_after(2.5)
            for seed, name in enumerate(changed[::4]):
                source.store.put(name, recording(2 * 10**6 + seed, 0.4))
            assert build.finish().code == DONE_WITH_FAILURES
        rebuild = ("--rebuild", "--keep-damaged", "--tokenizer-option", "mfcc.n_mfcc=13")
        finished = Build(source.url, sink.url, *options, *rebuild).finish()
        assert finished.code == DONE_WITH_FAILURES, finished.err
    print(f"{poller.polls} polls, {poller.versions.total()} changes seen, {len(poller.recipes)}")  # noqa: T201
    assert not poller.wrong
    assert poller.polls >= 10
    assert poller.versions
    assert len(poller.recipes) >= 2  # it looked while there were rows of both recipes
    assert set(good) <= first
    assert set(sink.names()) > first  # what is cut short is a row now


@pytest.mark.timeout(900)
def test_two_builds_at_once_make_every_row_once(bucket: Bucket, chaos: Chaos) -> None:
    """In the long form one of them is killed, now and then, and begun anew."""
    source, alone = bucket.fill("twice", FILES), bucket.place("s3://dst/twice/alone")
    undisturbed = Build(source.url, alone.url, seconds=0.01).finish()
    assert undisturbed.code == DONE_WITH_FAILURES
    for number in chaos.rounds(1, MANY_ROUNDS):
        draw = chaos.draw("twice", number)
        shared = bucket.place(f"s3://dst/twice/shared-{number}")
        other = Build(source.url, shared.url, seconds=0.01)
        with ended(other):
            kills, finished = killed_and_finished(
                partial(Build, source.url, shared.url, seconds=0.01),
                *(undisturbed.seconds, chaos.choose(0, draw.randrange(3)), draw),
            )
            codes = [other.finish().code, finished.code]
        if not kills:
            assert codes == [DONE_WITH_FAILURES, DONE_WITH_FAILURES]
        assert set(codes) <= {0, DONE_WITH_FAILURES}
        assert_same_dataset(shared, alone, attempts=False)
        count_left_over(shared, alone, chaos)
        chaos.count("pairs of builds")
        chaos.count("kills", kills)
