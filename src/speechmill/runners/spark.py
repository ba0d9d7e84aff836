"""Shards on Spark: a local session, a cluster, or Spark Connect.

Each shard is a job of one task, given and answered as JSON text through the DataFrame API: it is
all that Spark Connect has. A Python worker is kept by Spark from task to task, with its models.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from speechmill.errors import EngineError, JobError, MissingExtraError
from speechmill.machine import num_cores
from speechmill.records import ShardReport
from speechmill.runners.base import AnyJob
from speechmill.runners.cluster import ClusterRunner
from speechmill.runners.spark_sessions import (
    GOES_ON,
    context_of,
    knock,
    mapped,
    new_session,
    setting,
)
from speechmill.runners.wire import died_text, perform, report_from_text, task_to_text
from speechmill.runners.work import Task, run_task

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SparkRunner"]

KNOCK_EVERY_S, SILENCES = 5.0, 3  # after which a server of Spark Connect has gone
MOST_AT_ONCE = 2_000  # a thread each, which waits
# Loopback only, no pages, no bar across the user's terminal, a small JVM: it carries text.
_LOCAL: Final = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "512m",
    # The cores are the models'.
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
}
_QUIET: Final = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.python.worker.reuse": "true",
}

_log = logging.getLogger(__name__)


class SparkRunner(ClusterRunner["Future[ShardReport]"]):
    """Runs shards on Spark, 4.0 or later.

    Args:
        session: the session to use; it is not stopped. Without one, the process's own is used where
            there is one, and else one is started as the job says: ``address`` is a master
            (``spark://…``, ``yarn``, ``local[4]``), a Spark Connect server (``sc://…``), or
            ``auto`` for what Spark's own settings say; None is ``workers`` processes here.
        work: what a worker does with a task.

    Raises:
        MissingExtraError: pyspark is not installed.
        JobError: from ``run``, options that a session which is there already cannot take.
        EngineError: from ``run``, Spark cannot be started or reached, or has gone.
    """

    def __init__(
        self, session: SparkSession | None = None, *, work: Callable[[Task], ShardReport] = run_task
    ) -> None:
        try:
            import pyspark.sql  # noqa: F401
        except ImportError:
            raise MissingExtraError("the engine spark", "spark") from None
        super().__init__(lambda job, _: _start(job, session, work))


class _Spark:
    """Spark as an ``Engine``."""

    def __init__(
        self,
        session: SparkSession,
        job: AnyJob,
        *,
        ours: bool,
        cores: int,
        work: Callable[[Task], ShardReport],
    ) -> None:
        self._session, self._ours, self._work = session, ours, work
        self._context = context_of(session)
        self._cores = cores
        self._slots = job.workers
        # A client of Spark Connect goes on trying for ten minutes when its server has gone.
        self._server = job.address if ours and self._context is None else None
        self._knocked_at, self._silent = time.monotonic(), 0
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="spark")
        self._tags: dict[Future[ShardReport], str] = {}
        # Spark begins a task anew when its worker has died, unless it was merely slow.
        self._again_is_death = not setting(session, "spark.speculation.task.duration.threshold")
        if setting(session, "spark.python.worker.reuse", "true") != "true":
            _log.warning("spark.python.worker.reuse is off: each shard loads the model anew")

    def slots(self) -> int:
        if self._slots:
            return self._slots
        with mapped(self._session):
            slots = self._parallelism() // _cores_a_task(self._session)
        if setting(self._session, "spark.dynamicAllocation.enabled") == "true":
            slots *= 2  # what waits is what makes it grow
        slots = min(max(1, slots), MOST_AT_ONCE)
        if self._context is None:
            self._slots = slots  # it took a query
        return slots

    def submit(self, task: Task) -> Future[ShardReport]:
        tag = f"speechmill-{uuid.uuid4().hex}"
        text = task_to_text(replace(task, cores=self._cores))
        handle = self._pool.submit(self._run, text, tag)
        self._tags[handle] = tag
        return handle

    def _run(self, text: str, tag: str) -> ShardReport:
        """One job of one task; in a thread of the pool."""
        with mapped(self._session):
            self._tag(tag)
            try:
                row = [(text, self._again_is_death)]
                frame = self._session.createDataFrame(row, "task string, again_is_death boolean")
                answers = (
                    frame.coalesce(1).mapInArrow(_worker(self._work), "outcome string").collect()
                )
            finally:
                with suppress(Exception):
                    self._untag(tag)
        if len(answers) != 1:
            raise EngineError(f"Spark gave {len(answers)} answers for a shard, instead of one")
        return report_from_text(answers[0][0])

    def finished(
        self, handles: Sequence[Future[ShardReport]], timeout_s: float
    ) -> Sequence[Future[ShardReport]]:
        done = list(wait(handles, timeout_s, FIRST_COMPLETED).done)
        if self._server is not None and time.monotonic() - self._knocked_at > KNOCK_EVERY_S:
            self._look_at(self._server)
        return done

    def _look_at(self, server: str) -> None:
        try:
            knock(server)
            self._silent = 0
        except EngineError:
            self._silent += 1
        self._knocked_at = time.monotonic()
        if self._silent >= SILENCES:
            raise EngineError(f"the Spark Connect server at {server} has gone; {GOES_ON}")

    def result(self, handle: Future[ShardReport]) -> ShardReport:
        self._tags.pop(handle, None)
        return handle.result()

    def cancel(self, handles: Sequence[Future[ShardReport]]) -> None:
        for handle in handles:
            handle.cancel()
            if self._silent >= SILENCES:
                continue  # nobody is there who would answer
            with suppress(Exception):
                self._interrupt(self._tags[handle])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._ours and self._silent < SILENCES:
            with suppress(Exception):
                self._session.stop()

    # A session's own tags are those of the thread that made them, where there is a context.

    def _tag(self, tag: str) -> None:
        if self._context is None:
            self._session.addTag(tag)
        else:
            self._context.addJobTag(tag)

    def _untag(self, tag: str) -> None:
        if self._context is None:
            self._session.removeTag(tag)
        else:
            self._context.removeJobTag(tag)

    def _interrupt(self, tag: str) -> None:
        if self._context is None:
            self._session.interruptTag(tag)
        else:
            self._context.cancelJobsWithTag(tag)

    def _parallelism(self) -> int:
        """How many cores the executors have."""
        if self._context is not None:
            return self._context.defaultParallelism
        from pyspark.sql.functions import spark_partition_id

        return self._session.range(10_000).select(spark_partition_id()).distinct().count()


def _worker(
    work: Callable[[Task], ShardReport],
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What Spark calls in a Python worker, for a column of tasks."""

    def perform_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        again = context is not None and context.attemptNumber() > 0
        if context is not None and "gpu" in (resources := context.resources()):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(resources["gpu"].addresses))
        for batch in batches:
            for task in batch.to_pylist():
                if again and task["again_is_death"]:
                    # Deaths are counted where the build is, not multiplied by Spark's own retries.
                    outcome = died_text("the process was killed, or was out of memory")
                else:
                    outcome = perform(task["task"], work)
                yield pa.RecordBatch.from_pydict({"outcome": [outcome]})

    return perform_all


def _start(
    job: AnyJob, session: SparkSession | None, work: Callable[[Task], ShardReport]
) -> _Spark:
    from pyspark.sql import SparkSession

    given = session
    with suppress(Exception):
        session = session or SparkSession.active()
    if session is not None:
        if given is None and job.address not in (None, "auto"):
            raise JobError(
                f"address: this process has a Spark session already, so {job.address} cannot be "
                "had; stop it, or leave the address out to use it"
            )
        if job.worker_option:
            raise JobError(
                "worker_option: the Spark session is there already; set "
                f"{min(job.worker_option)} where it is made"
            )
        return _Spark(session, job, ours=False, cores=_cores_a_task(session), work=work)
    options = {"spark.app.name": "speechmill", **_QUIET}
    cores = None
    if job.address is None:
        workers = job.workers or num_cores()
        cores = max(1, num_cores() // workers)
        master = {"spark.master": f"local[{workers}]"}
        options |= {**master, **_LOCAL, "spark.executorEnv.OMP_NUM_THREADS": str(cores)}
    elif job.address.startswith("sc://"):
        options = {"spark.remote": job.address}  # all else is the server's
    elif job.address.startswith("local"):
        options |= {"spark.master": job.address, **_LOCAL}
    elif job.address != "auto":
        options |= {"spark.master": job.address}
    options |= _options(job)
    if job.address is not None:
        knock(job.address)
    session = new_session(options)
    return _Spark(session, job, ours=True, cores=cores or _cores_a_task(session), work=work)


def _cores_a_task(session: SparkSession) -> int:
    return int(setting(session, "spark.task.cpus", "1"))


def _options(job: AnyJob) -> dict[str, str]:
    for name in job.worker_option:
        if not name.startswith("spark."):
            raise JobError(
                f"worker_option: {name!r} is no setting of Spark; they begin with 'spark.', such "
                "as spark.task.cpus=4 or spark.executor.memory=8g"
            )
    return {name: str(value) for name, value in job.worker_option.items()}
