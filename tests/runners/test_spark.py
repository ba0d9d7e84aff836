"""What Spark has of its own: a session that is stopped, its settings, its command.

What it has in common with other engines is in ``tests/contracts/test_runner.py``.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import psutil
import pyarrow as pa
import pytest
import soundfile

import speechmill
from speechmill.errors import EngineError, JobError, MissingExtraError
from speechmill.job import Job
from speechmill.records import ShardReport
from speechmill.runners.spark import SparkRunner
from speechmill.runners.spark_sessions import mapped
from speechmill.runners.work import Task, run_task
from tests.support.engine_work import has_folder
from tests.support.spark_sessions import need_spark, spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TIMES = ["fetch_s", "decode_s", "transcribe_s", "tokenize_s"]


@pytest.fixture
def session() -> SparkSession:
    return spark_session()


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
    table = speechmill.open_dataset(sink).to_table().drop_columns(TIMES)
    return table.sort_by([("file_name", "ascending"), ("start_s", "ascending")])


def parts(sink: str) -> list[str]:
    return sorted(str(p.relative_to(sink)) for p in Path(sink, "data").rglob("*.parquet"))


def assert_as_local(job: Job) -> None:
    """That the sink is what a local build makes."""
    sink = f"{job.sink}-local"
    speechmill.build(job.model_copy(update={"sink": sink, "engine": "local"}))
    assert rows(job.sink).equals(rows(sink))
    assert parts(job.sink) == parts(sink)


def begun(job: Job) -> list[tuple[int, int]]:
    """Which tasks the workers of these tests have noted: (attempt, process), in order."""
    path = Path(job.sink).parent / "begun"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(attempt), int(pid)) for attempt, pid in map(str.split, lines)]


def note(task: Task) -> None:
    with (Path(task.job.sink).parent / "begun").open("a") as file:
        file.write(f"{task.attempt} {os.getpid()}\n")


def is_p2(task: Task) -> bool:
    return has_folder(task, "p2")


def linger(task: Task) -> ShardReport:
    """A worker that takes its time, at the first attempt at p2."""
    if is_p2(task) and task.attempt == 0:
        note(task)
        time.sleep(90)
    return run_task(task)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread beside the test; nothing of it is left to the next one, also when the test fails."""
    with ThreadPoolExecutor(1) as threads:
        yield threads


def wait_for_worker(job: Job) -> int:
    """The process of the first task that was noted."""
    deadline = time.monotonic() + 60
    while not (noted := begun(job)):
        assert time.monotonic() < deadline, "no worker has begun"
        time.sleep(0.05)
    return noted[0][1]


def test_when_spark_is_stopped_the_build_says_so_in_one_line(
    job: Job, session: SparkSession, pool: ThreadPoolExecutor
) -> None:
    def stop() -> None:
        wait_for_worker(job)
        session.stop()

    stopped = pool.submit(stop)
    with pytest.raises(EngineError, match=r"Spark has gone: .* the same command goes on") as caught:
        speechmill.build(job, runner=SparkRunner(session, work=linger))
    assert "\n" not in str(caught.value)
    stopped.result()
    # Whatever else was said of it: there are as many forms as there are moments to be stopped at.
    with pytest.raises(EngineError, match="Spark has gone"), mapped(session):
        raise RuntimeError("dagScheduler() is null")
    report = speechmill.build(job)  # and it does
    assert report.failed == 0
    assert_as_local(job)


def test_an_error_of_a_session_that_goes_on_is_told_as_it_is(session: SparkSession) -> None:
    said = r"^Spark could not do it: .*no_such_table"
    with pytest.raises(EngineError, match=said), mapped(session):
        session.sql("select * from no_such_table").collect()


def test_options_that_cannot_be_meant_are_refused(job: Job, session: SparkSession) -> None:
    def build(**options: object) -> None:
        speechmill.build(job.model_copy(update={"engine": "spark", **options}))

    with pytest.raises(JobError, match="a Spark session already"):
        build(address="spark://127.0.0.1:7077")
    with pytest.raises(JobError, match=r"spark\.executor\.memory where it is made"):
        build(worker_option={"spark.executor.memory": "1g"})
    session.stop()
    with pytest.raises(JobError, match="'num_gpus' is no setting of Spark"):
        build(worker_option={"num_gpus": 1})
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"nothing listens at spark://127\.0\.0\.1:9"):
        build(address="spark://127.0.0.1:9")
    with pytest.raises(EngineError, match=r"nothing listens at sc://127\.0\.0\.1:9"):
        build(address="sc://127.0.0.1:9")
    with pytest.raises(JobError, match="no number for its port"):
        build(address="spark://127.0.0.1:first")
    assert time.monotonic() - started < 15


def test_only_a_session_on_this_machine_is_bound_to_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executors of a cluster must be able to reach the driver."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    from speechmill.runners import spark, spark_sessions

    with suppress(PySparkRuntimeError):  # there is none
        SparkSession.active().stop()
    seen: list[tuple[dict[str, str], str | None, str | None]] = []

    def launch(options: dict[str, str], _: object) -> NoReturn:
        seen.append((options, os.environ.get("SPARK_LOCAL_IP"), os.environ.get("PYSPARK_PYTHON")))
        raise RuntimeError("enough")

    monkeypatch.setattr(spark_sessions, "_launch", launch)
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    for address in (None, "local[2]", "yarn", "auto"):
        with pytest.raises(EngineError, match="could not be started: enough"):
            spark._start(job.model_copy(update={"address": address, "workers": 2}), None, run_task)
    assert [(o.get("spark.driver.host"), ip, python) for o, ip, python in seen] == [
        *[("127.0.0.1", "127.0.0.1", sys.executable)] * 2,
        *[(None, None, None)] * 2,
    ]
    masters = [o.get("spark.master") for o, _, _ in seen]
    assert masters == ["local[2]", "local[2]", "yarn", None]
    assert "SPARK_LOCAL_IP" not in os.environ


class Remote:
    """What a session of Spark Connect has, whose server does not answer: each call would wait."""

    class Settings:
        def get(self, name: str, default: str) -> str:
            return default

    conf = Settings()

    def interruptTag(self, tag: str) -> NoReturn:  # noqa: N802 - Spark's name
        raise AssertionError("nobody would answer")

    def stop(self) -> NoReturn:
        raise AssertionError("nobody would answer")


def test_a_server_of_spark_connect_that_has_gone_is_noticed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would go on trying for ten minutes. One that falls silent only once stays."""
    from speechmill.runners import spark

    answers = iter([False, False, True, False, False, False])

    def knock(address: str) -> None:
        assert address == "sc://127.0.0.1:9"
        if not next(answers):
            raise EngineError("nothing listens")

    monkeypatch.setattr(spark, "knock", knock)
    monkeypatch.setattr(spark, "KNOCK_EVERY_S", -1.0)
    there = job.model_copy(update={"address": "sc://127.0.0.1:9", "workers": 2})
    session: Any = Remote()
    engine = spark._Spark(session, there, ours=True, cores=1, work=run_task)
    assert engine.slots() == 2
    for _ in range(5):
        assert engine.finished([], 0.0) == []
    with pytest.raises(EngineError, match="has gone; once Spark runs again"):
        engine.finished([], 0.0)
    engine.cancel([])
    engine.close()


def test_without_pyspark_the_error_names_the_extra(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(MissingExtraError, match=re.escape("speechmill[spark]")):
        speechmill.build(job.model_copy(update={"engine": "spark"}))


def command(job: Job, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """``speechmill build --engine spark`` as a user runs it; its exit code, and what it said."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "speechmill", "build", job.source, job.sink),
            *("--transcriber", "fake", "--part-minutes", "0.05", "--engine", "spark", *options),
        ],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_command_starts_spark_here_and_nothing_of_it_reaches_the_terminal(job: Job) -> None:
    need_spark()
    code, said = command(job, "--workers", "2")
    assert code == 0, said
    assert_as_local(job)
    for noise in ("WARN", "ERROR", "Setting default log level", "incubator", "Stage", "log4j"):
        assert noise not in said
    assert "rows" in said


def test_when_sparks_own_process_is_killed_the_command_says_so_in_one_line(job: Job) -> None:
    need_spark()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "speechmill", "build", job.source, job.sink),
            *("--transcriber", "fake", "--model", "fake:0.5", "--part-minutes", "0.05"),
            *("--engine", "spark", "--workers", "1"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        deadline = time.monotonic() + 120
        while not parts(job.sink):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "java":
                child.kill()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "error: Spark has gone" in said
    assert "Traceback" not in said
    speechmill.build(job)
    assert_as_local(job)


def test_without_java_the_command_says_what_is_missing(job: Job, tmp_path: Path) -> None:
    need_spark()
    code, said = command(job, env={"JAVA_HOME": str(tmp_path)})
    assert code == 1
    assert "Spark could not be started" in said
    assert "Java 17" in said
    assert "Traceback" not in said
