"""What holds for every engine: the rows of a local build, whoever dies; and nothing done twice. The
same for columns that are added.

Plain processes, where deaths can be told apart more finely, are in
``tests/runners/test_cluster.py``.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile

import speechmill
from speechmill.dataset.summary import failed_recordings
from speechmill.enrich.add import Elsewhere, add_tokens, measure
from speechmill.enrich.shards import EnrichedShard, Enrichment, PartsShard
from speechmill.errors import EngineError, ModelError
from speechmill.job import Job
from speechmill.records import RecordingDone, Shard, ShardReport
from speechmill.runners import RUNNERS
from speechmill.runners.base import Runner
from speechmill.runners.cluster import Engine
from speechmill.runners.local import LocalRunner
from speechmill.runners.work import Task, run_task
from speechmill.storage import open_store
from tests.support.engine_work import (
    DEADLY,
    churn,
    die_of_a_row,
    die_of_one,
    linger,
    notes,
    refuse,
    stumble,
    tell,
)
from tests.support.weights import missing

TIMES = ["fetch_s", "decode_s", "transcribe_s", "tokenize_s"]
NUM_GOOD, NUM_BROKEN = 14, 1

Work = Callable[..., ShardReport]


@dataclass(frozen=True)
class Cluster:
    """An engine of two workers, given to a runner as a user would give their own."""

    kind: str
    runner: Callable[[Work], Runner]
    engine: Callable[[Job, Work], Engine[Any]]
    is_there: Callable[[], bool] = lambda: True


def soon(true: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    deadline = time.monotonic() + 10
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _dask(stack: ExitStack) -> Cluster:
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError:
        missing("there is no distributed here: pip install distributed")
    from speechmill.runners import dask

    # Else a worker that takes longer to be started anew is forgotten.
    stack.enter_context(config.set({"distributed.deploy.lost-worker-timeout": "1 day"}))

    cluster = stack.enter_context(
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
        )
    )
    client = stack.enter_context(Client(cluster, set_as_default=False))
    return Cluster(
        "dask",
        lambda work: dask.DaskRunner(client, work=work),
        lambda job, work: dask._start(job, 2, client, work),
        lambda: client.status == "running" and soon(lambda: not client.futures),
    )


def _ray(stack: ExitStack) -> Cluster:
    try:
        from speechmill.runners.ray import RayRunner
        from speechmill.runners.ray_clusters import start_here

        RayRunner()
    except speechmill.MissingExtraError:
        missing("there is no ray here: pip install 'ray[client]'")
    import ray

    from speechmill.runners.ray import _start

    start_here(ray, 2, stack)

    def free() -> bool:
        return bool(ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])

    return Cluster(
        "ray",
        lambda work: RayRunner(work=work),
        lambda job, work: _start(job, 2, work),
        lambda: ray.is_initialized() and soon(free),
    )


def _spark(_: ExitStack) -> Cluster:
    from tests.support.spark_sessions import spark_session

    session = spark_session()
    from speechmill.runners import spark

    return Cluster(
        "spark",
        lambda work: spark.SparkRunner(session, work=work),
        lambda job, work: spark._start(job, session, work),
        lambda: session.range(1).count() == 1,
    )


START = {"dask": _dask, "ray": _ray, "spark": _spark}


@pytest.fixture(scope="module", params=START)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield START[request.param](stack)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that are a shard each; a name that is not UTF-8, and a recording that is none."""
    folder = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(1)
    for name, clip in itertools.product(("p0", "p1", "p2", "p3"), range(3)):
        path = folder / name / f"{clip}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise.normal(0, 0.1, 4000 * (1 + int(name[1]))), 16_000)
    (folder / "a=b 50%").mkdir()
    for odd in (b"\xff\xfe.wav", b"fine.wav"):
        with (folder / "a=b 50%" / os.fsdecode(odd)).open("wb") as file:
            soundfile.write(file, noise.normal(0, 0.1, 9000), 16_000, format="WAV")
    (folder / "p3" / "text.wav").write_bytes(b"This is no audio at all.")
    return folder


@pytest.fixture
def job(source: Path, tmp_path: Path) -> Job:
    return job_of(source, tmp_path / "sink")


def job_of(source: Path, sink: Path) -> Job:
    return Job(
        source=str(source),
        sink=str(sink),
        transcriber="fake",
        tokenizer=("mfcc", "fake"),
        part_minutes=0.05,
    )


@dataclass(frozen=True)
class Built:
    """What a sink holds: rows but for what they took, failures, names of parts with rows."""

    rows: pa.Table
    failures: list[tuple[str, str, str]]
    parts: list[str]

    @staticmethod
    def of(sink: str) -> Built:
        table = speechmill.open_dataset(sink).to_table().drop_columns(TIMES)
        return Built(
            table.sort_by([("file_name", "ascending"), ("start_s", "ascending")]),
            sorted((f.file_name, f.stage, f.error) for f in failed_recordings(open_store(sink))),
            sorted(str(path.relative_to(sink)) for path in Path(sink, "data").rglob("*.parquet")),
        )


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    sink = tmp_path_factory.mktemp("local") / "sink"
    report = speechmill.build(job_of(source, sink), runner=LocalRunner())
    assert (report.rows, report.failed) == (NUM_GOOD, NUM_BROKEN)
    return Built.of(str(sink))


class _Keep:
    """A runner that runs nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def run(
        self,
        job: Job,
        shards: Iterable[Shard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport | None]:
        recipe = speechmill.pipeline.resources.open_resources(job).recipe.id
        self.tasks = [Task(job, shard, recipe) for shard in shards]
        yield from ()


def test_every_engine_is_held_to_this() -> None:
    assert {"local", *START} == set(RUNNERS)  # local is what the others are held to


def test_rows_failures_and_parts_are_those_of_a_local_build(
    cluster: Cluster, job: Job, expected: Built
) -> None:
    report = speechmill.build(job, runner=cluster.runner(tell))
    assert (report.rows, report.failed, report.stopped) == (NUM_GOOD, NUM_BROKEN, False)
    assert Built.of(job.sink) == expected
    assert len(notes(job)) == len({note.shard for note in notes(job)}) >= 4
    assert len({note.pid for note in notes(job)}) <= 2  # they are kept, and their models with them
    assert_one_at_a_time(job)
    assert cluster.is_there()


def assert_one_at_a_time(job: Job) -> None:
    """No process has begun a task before it had ended another."""
    spans = sorted(
        (begun.pid, begun.at, ended.at)
        for begun in notes(job)
        for ended in notes(job, "ended")
        if (begun.shard, begun.attempt) == (ended.shard, ended.attempt)
    )
    assert len(spans) == len(notes(job))
    for (pid, _, end), (other, begin, _) in itertools.pairwise(spans):
        assert pid != other or end <= begin


def test_a_worker_that_is_killed_in_mid_shard_costs_no_row(
    cluster: Cluster, job: Job, expected: Built
) -> None:
    slow = job.model_copy(update={"model": "fake:0.3"})
    killed: list[int] = []

    def kill() -> None:
        while not (begun := notes(job)):
            time.sleep(0.02)
        time.sleep(0.3)
        killed.append(begun[0].pid)
        os.kill(begun[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = speechmill.build(slow, runner=cluster.runner(tell))
    killer.join(1)
    assert [note.pid for note in notes(job)].count(killed[0]) >= 1
    assert max(note.attempt for note in notes(job)) == 1
    assert (report.rows, report.failed) == (NUM_GOOD, NUM_BROKEN)
    assert Built.of(job.sink) == expected


def test_a_recording_that_always_kills_is_found_and_set_aside_and_the_others_have_their_rows(
    cluster: Cluster, job: Job, expected: Built
) -> None:
    twice = job.model_copy(update={"max_attempts": 2})
    report = speechmill.build(twice, runner=cluster.runner(die_of_one))
    assert report.recordings == NUM_GOOD + NUM_BROKEN
    assert report.rows == NUM_GOOD - 1
    (aside,) = [f for f in failed_recordings(open_store(job.sink)) if f.stage == "worker"]
    assert (aside.file_name, aside.error) == ("p2/1.wav", "WorkerDiedError")
    assert aside.message.startswith("2 workers died while they worked on it; the last: ")
    assert "killed" in aside.message
    assert "\n" not in aside.message
    deaths = [note.attempt for note in notes(job, "dies")]
    assert deaths[:2] == [0, 1]
    assert set(deaths[2:]) == {1}  # in a half, and a half of that, until it was alone
    assert cluster.is_there()
    report = speechmill.build(job)  # with workers that live
    assert report.rows == 1
    assert Built.of(job.sink) == expected


def test_workers_keep_the_memory_that_models_take_again_and_again(
    cluster: Cluster, job: Job
) -> None:
    speechmill.build(job, runner=cluster.runner(churn))
    assert notes(job, "thrashes") == []


def test_errors_of_workers_arrive_as_they_are(cluster: Cluster, job: Job) -> None:
    with pytest.raises(ModelError, match=r"^no such weights on \d+$"):
        speechmill.build(job, runner=cluster.runner(refuse))
    with pytest.raises(EngineError, match="ZeroDivisionError: nobody foresaw this") as caught:
        speechmill.build(job, runner=cluster.runner(stumble))
    assert "\n" not in str(caught.value)
    assert cluster.is_there()


def test_a_stop_gives_up_what_the_workers_have_in_hand(cluster: Cluster, job: Job) -> None:
    asked_at: list[float] = []

    def stop() -> bool:
        if notes(job) and not asked_at:
            asked_at.append(time.monotonic())
        return bool(asked_at)

    report = speechmill.build(job, runner=cluster.runner(linger), stop=stop)
    assert report.stopped
    assert time.monotonic() - asked_at[0] < 15
    if cluster.kind == "spark":  # it ends them
        assert soon(lambda: not any(map(alive, {note.pid for note in notes(job)})))
    else:
        assert len(notes(job, "stopped")) == len(notes(job))
    assert cluster.is_there()


def test_a_shard_that_is_given_twice_at_once_has_its_rows_once(
    cluster: Cluster, job: Job, expected: Built
) -> None:
    keep = _Keep()
    speechmill.build(job, runner=keep)
    engine = cluster.engine(job, run_task)
    try:
        deadline = time.monotonic() + 30
        while engine.slots() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for task in keep.tasks:
            waiting = {engine.submit(task), engine.submit(task)}
            while waiting:
                assert time.monotonic() < deadline + 60
                for handle in engine.finished(list(waiting), 0.5):
                    waiting.remove(handle)
                    assert isinstance(task.shard, Shard)
                    assert len(engine.result(handle).done) == task.shard.num_recordings
    finally:
        engine.close()
    assert Built.of(job.sink) == expected


# Columns that are added.


def elsewhere(cluster: Cluster, job: Job, work: Work) -> Elsewhere:
    """The cluster, as ``measure`` and ``tokens add`` take it."""

    def run(
        told: Enrichment, shards: Iterable[PartsShard], stop: Callable[[], bool]
    ) -> Iterator[EnrichedShard | None]:
        runner: Any = cluster.runner(work)
        for report in runner.run(told, shards, stop=stop, on_done=lambda _: None):
            assert report is None or isinstance(report, EnrichedShard)
            yield report

    return Elsewhere(Enrichment(source=job.source, sink=job.sink, max_attempts=2), run)


@pytest.fixture
def enriched(source: Path, tmp_path: Path) -> Job:
    """A dataset without what is to be added."""
    job = job_of(source, tmp_path / "enriched").model_copy(update={"tokenizer": ("mfcc",)})
    speechmill.build(job, runner=LocalRunner())
    return job


@pytest.fixture
def a_shard_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechmill.enrich.shards.SHARD_S", 0.0)


@pytest.mark.usefixtures("a_shard_a_part")
def test_measures_and_tokens_that_are_added_are_those_of_a_local_build(
    cluster: Cluster, enriched: Job, source: Path, tmp_path: Path
) -> None:
    whole = job_of(source, tmp_path / "whole")
    whole = whole.model_copy(update={"measure": ("level", "fake")})
    speechmill.build(whole, runner=LocalRunner())
    sink = open_store(enriched.sink)
    measured = measure(sink, ["level", "fake"], elsewhere=elsewhere(cluster, enriched, tell))
    assert (measured.rows, measured.complete) == (NUM_GOOD, True)
    assert set(measured.compute_s) == {"level", "fake"}
    added = add_tokens(sink, "fake", elsewhere=elsewhere(cluster, enriched, tell))
    assert (added.rows, added.complete) == (NUM_GOOD, True)
    assert set(added.mismatch) == {0.0}
    expected, found = Built.of(whole.sink), Built.of(enriched.sink)
    assert found.rows.select(expected.rows.column_names).equals(expected.rows)
    assert found.failures == expected.failures
    assert len({note.pid for note in notes(enriched)} - {os.getpid()}) >= 1
    assert os.getpid() not in {note.pid for note in notes(enriched)}
    assert speechmill.build(whole.model_copy(update={"sink": enriched.sink})).recordings == 0
    assert cluster.is_there()


def test_a_row_that_kills_is_found_and_named_and_all_others_have_their_values(
    cluster: Cluster, enriched: Job
) -> None:
    sink = open_store(enriched.sink)
    report = measure(sink, ["level"], elsewhere=elsewhere(cluster, enriched, die_of_a_row))
    assert len(notes(enriched)) - len(notes(enriched, "ended")) <= 2 + 6  # once more a half
    assert (dict(report.lost), set(report.reasons)) == ({"failed": 1}, {DEADLY})
    assert "2 workers died" in report.reasons[DEADLY]
    assert report.rows + report.resumed == NUM_GOOD - 1
    assert not report.complete
    table = Built.of(enriched.sink).rows
    lacking = table.filter(pc.is_null(table["peak_dbfs"]))["file_name"].to_pylist()
    assert lacking == [DEADLY]
    assert cluster.is_there()
    again = measure(sink, ["level"], elsewhere=elsewhere(cluster, enriched, tell))
    assert (again.rows, again.complete) == (1, True)


@pytest.mark.usefixtures("a_shard_a_part")
def test_errors_of_workers_that_add_columns_arrive_as_they_are(
    cluster: Cluster, enriched: Job
) -> None:
    with pytest.raises(ModelError, match=r"^no such weights on \d+$"):
        measure(
            open_store(enriched.sink), ["level"], elsewhere=elsewhere(cluster, enriched, refuse)
        )
    assert cluster.is_there()
