"""What all engines have in common, on an engine of plain processes that can be killed at will."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import speechmill
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import DatasetError, JobError, WorkerDiedError
from speechmill.job import Job
from speechmill.records import Recording, Shard, ShardReport
from speechmill.runners import cluster
from speechmill.runners.cluster import ClusterRunner
from speechmill.runners.work import Task, run_task, what_is_left
from speechmill.storage import open_store
from tests.support.engine_work import has_folder

TIMES = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")


class Processes:
    """An engine: one process a task, so that a death is that of one task."""

    def __init__(self, slots: int, function: Callable[[Task], ShardReport] = run_task) -> None:
        self._slots = slots
        self._function = function
        self._pools: dict[Future[ShardReport], ProcessPoolExecutor] = {}
        self.submitted: list[Task] = []
        self.reports: list[ShardReport] = []
        self.most = 0

    def slots(self) -> int:
        return self._slots

    def submit(self, task: Task) -> Future[ShardReport]:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        handle = pool.submit(self._function, task)
        self._pools[handle] = pool
        self.submitted.append(task)
        self.most = max(self.most, sum(not h.done() for h in self._pools))
        return handle

    def finished(
        self, handles: Sequence[Future[ShardReport]], timeout_s: float
    ) -> Sequence[Future[ShardReport]]:
        return list(wait(handles, timeout_s, FIRST_COMPLETED).done)

    def result(self, handle: Future[ShardReport]) -> ShardReport:
        try:
            self.reports.append(handle.result())
            return self.reports[-1]
        except BrokenProcessPool:
            raise WorkerDiedError("the process was killed") from None

    def cancel(self, handles: Sequence[Future[ShardReport]]) -> None:
        for handle in handles:
            for process in (self._pools[handle]._processes or {}).values():
                process.kill()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def die(task: Task) -> ShardReport:
    """A worker that is killed by any shard of the folder p2."""
    if has_folder(task, "p2"):
        os.kill(os.getpid(), 9)
    return run_task(task)


def die_always(task: Task) -> ShardReport:
    os.kill(os.getpid(), 9)
    return run_task(task)


def die_once(task: Task) -> ShardReport:
    """A worker that is killed when it has done its first task, before it has said so."""
    report = run_task(task)
    if task.attempt == 0:
        os.kill(os.getpid(), 9)
    return report


def linger(task: Task) -> ShardReport:
    time.sleep(60)
    return run_task(task)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Four folders, each larger than the one before, and a shard each."""
    noise = np.random.default_rng(1)
    for folder, clip in itertools.product(range(4), range(3)):
        path = tmp_path / "source" / f"p{folder}" / f"{clip}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise.normal(0, 0.1, 4000 * (1 + folder)), 16_000)
    return Job(
        source=str(tmp_path / "source"),
        sink=str(tmp_path / "sink"),
        transcriber="fake",
        part_minutes=0.05,
    )


def rows(sink: str) -> pa.Table:
    """All rows in order, but for what they took."""
    table = speechmill.open_dataset(sink).to_table().drop_columns(list(TIMES))
    return table.sort_by([("file_name", "ascending"), ("start_s", "ascending")])


def local(job: Job) -> pa.Table:
    sink = f"{job.sink}-local"
    speechmill.build(job.model_copy(update={"sink": sink}))
    return rows(sink)


def parts(sink: str) -> list[str]:
    return sorted(str(p.relative_to(sink)) for p in Path(sink, "data").rglob("*.parquet"))


def test_the_rows_and_parts_are_those_of_a_local_build(job: Job) -> None:
    engine = Processes(2)
    report = speechmill.build(job, runner=ClusterRunner(lambda *_: engine))
    assert (report.rows, report.failed, report.stopped) == (12, 0, False)
    assert len(engine.submitted) == 4
    assert rows(job.sink).equals(local(job))
    assert parts(job.sink) == parts(f"{job.sink}-local")
    assert engine.most <= 2
    sizes = [task.shard.num_bytes for task in engine.submitted]
    assert sizes == sorted(sizes, reverse=True)  # the largest first


def test_what_keeps_killing_workers_is_set_aside_alone(job: Job) -> None:
    engine = Processes(2, die)
    report = speechmill.build(job, runner=ClusterRunner(lambda *_: engine))
    assert (report.recordings, report.rows) == (12, 9)
    failed = failed_recordings(open_store(job.sink))
    assert {f.file_name for f in failed} == {f"p2/{clip}.wav" for clip in range(3)}
    assert {(f.stage, f.error) for f in failed} == {("worker", "WorkerDiedError")}
    assert all("3 workers died" in f.message for f in failed)
    deadly = [t for t in engine.submitted if has_folder(t, "p2")]
    assert [t.attempt for t in deadly] == [0, 1, 2, 2, 2, 2, 2]  # three times, halves, quarters
    # The next build tries again, here with workers that live.
    report = speechmill.build(job)
    assert (report.failed, report.rows) == (0, len(failed))
    assert rows(job.sink).equals(local(job))
    assert failed_recordings(open_store(job.sink)) == []


def test_where_all_workers_die_of_anything_they_are_not_started_for_each_recording(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MAX_DEATHS", 4)
    engine = Processes(1, die_always)
    once = job.model_copy(update={"max_attempts": 1})
    report = speechmill.build(once, runner=ClusterRunner(lambda *_: engine))
    assert (report.recordings, report.failed) == (12, 12)
    assert len(engine.submitted) <= 4 + 2 * 4  # the shards, and halves of four


def test_what_a_dead_worker_had_committed_is_not_done_again(job: Job) -> None:
    engine = Processes(2, die_once)
    report = speechmill.build(job, runner=ClusterRunner(lambda *_: engine))
    assert (report.rows, report.failed, report.stopped) == (12, 0, False)
    assert report.audio_s == pytest.approx(3 * (1 + 2 + 3 + 4) / 4)
    assert rows(job.sink).equals(local(job))
    assert {d.transcribe_s for r in engine.reports for d in r.done} == {0.0}


def test_what_has_changed_since_is_left_to_be_done(job: Job) -> None:
    shard = speechmill.plan(job).shards[0]
    recipe = speechmill.build(job).recipe
    (part, recordings), *others = shard.parts
    changed = Recording(recordings[0].key, 1, "other", recordings[0].modified_us + 1)
    sink = open_store(job.sink)
    left, done = what_is_left(sink, Shard(0, ((part, (changed, *recordings[1:])), *others)), recipe)
    assert left.parts == ((part, (changed,)),)
    names = {r.file_name for _, some in shard.parts for r in some}
    assert {d.file_name for d in done} == names - {changed.file_name}
    assert what_is_left(sink, shard, "another") == (shard, ())


def test_a_stop_gives_up_what_the_workers_have_in_hand(job: Job) -> None:
    engine = Processes(2, linger)
    started = time.monotonic()
    asked = itertools.count()
    report = speechmill.build(
        job, runner=ClusterRunner(lambda *_: engine), stop=lambda: next(asked) > 2
    )
    assert report.stopped
    assert time.monotonic() - started < 20


def test_a_worker_that_would_make_other_rows_says_so(job: Job) -> None:
    shard = speechmill.plan(job).shards[0]
    with pytest.raises(DatasetError, match="would make rows by the recipe"):
        run_task(Task(job, shard, "0123456789abcdef"))


def test_a_single_writer_has_no_engine(job: Job) -> None:
    only = job.model_copy(update={"single_writer": True})
    with pytest.raises(JobError, match="single_writer"):
        speechmill.build(only, runner=ClusterRunner(lambda *_: Processes(1)))
