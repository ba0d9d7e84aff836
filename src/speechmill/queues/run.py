"""``work``, whole: from a job and a queue to a worker that runs, and its report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

from speechmill._version import __version__
from speechmill.dataset.run_log import RunLog, new_run_id
from speechmill.dataset.state import read_state
from speechmill.errors import JobError, SpeechmillError
from speechmill.job import Job
from speechmill.pipeline.agreement import agree, check, settled_resources
from speechmill.pipeline.resources import Resources, open_sink
from speechmill.queues import open_broker
from speechmill.queues.base import Consumer
from speechmill.queues.metrics import Endpoint, serve
from speechmill.queues.options import WorkOptions
from speechmill.queues.tally import Observer, WorkReport, WorkTally
from speechmill.queues.worker import Worker

__all__ = ["OF_SINK", "work"]

OF_SINK = "(the sink's)"
"""A job's source where it is not told."""

LOOK_S = 0.2


class _WithMetrics(Observer):
    """Tells the user and the metrics."""

    def __init__(self, observer: Observer, endpoint: Endpoint) -> None:
        self._observer, self._endpoint = observer, endpoint
        self.ready, self.said = observer.ready, observer.said  # type: ignore[method-assign]

    def progress(self, tally: WorkTally) -> None:
        self._observer.progress(tally)
        self._endpoint.progress(tally)

    def batch(self, count: int, seconds: float) -> None:
        self._observer.batch(count, seconds)
        self._endpoint.batch(count, seconds)


def work(
    job: Job,
    options: WorkOptions,
    *,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> WorkReport:
    """Take recordings from a queue, and grow the dataset by them.

    Returns once ``stop()`` is true and what was in hand is settled or given back, or, with
    ``until_empty``, once the queue is empty. ``job.source`` may be ``OF_SINK``.

    Raises:
        JobError: an option makes no sense, or nothing says where the recordings are.
        BrokerError: the broker cannot be reached, refuses, or stays away.
        DatasetError: the sink holds rows of another source or recipe.
        ModelError: weights cannot be found, or the engine cannot run them.
        StorageError: a store cannot be reached, read or written, or lacks conditional puts.
    """
    started = time.monotonic()
    if job.single_writer:
        raise JobError(
            "single_writer cannot be vouched for where workers share a queue: use a store that "
            "has conditional puts"
        )
    with (
        serve(options.metrics) as endpoint,
        closing(open_broker(options.queue, options.broker_option)) as broker,
    ):
        broker.prepare()
        observer = observer or Observer()
        if endpoint is not None:
            observer = _WithMetrics(observer, endpoint)
        sink = open_sink(job)
        group = options.group or f"speechmill-{hashlib.sha256(sink.url.encode()).hexdigest()[:8]}"
        job = _with_source(job, state := read_state(sink))
        checked = None
        if state is not None:  # in a new one nothing is written before the source is known to be
            checking = ThreadPoolExecutor(1, thread_name_prefix="check")
            checked = checking.submit(sink.check)  # some stores take seconds
            checking.shutdown(wait=False)
        with closing(broker.consume(group)) as consumer:
            tools = _settled(job, consumer, checked)
            log = RunLog(tools.sink, run_id := new_run_id())
            log.event(
                "started",
                version=__version__,
                source=tools.source.url,
                recipe=tools.recipe.id,
                queue=broker.url,
                group=group,
            )
            observer.ready(broker.url, tools.sink.url, endpoint.address if endpoint else "")
            worker = Worker(tools, options, broker, consumer, log, observer, stop=stop)
            with log.watching():
                worker.run()
        report = _report(broker.url, tools, run_id, worker.tally, started, stopped=stop())
        log.event("stopped" if stop() else "finished", rows=report.rows, failed=report.failed)
        log.flush(now=True)
        with suppress(SpeechmillError):  # the rows are there; the report is told in any case
            log.report(report.to_dict())
        return report


def _with_source(job: Job, state: Mapping[str, Any] | None) -> Job:
    """The job with its source: its own, or its sink's. A message is not asked: whoever can publish
    one would say what is read."""
    if job.source != OF_SINK:
        return job
    if state is None:
        raise JobError(
            f"{job.sink} holds no dataset yet, and nothing says where its recordings are: give "
            "--source"
        )
    return job.model_copy(update={"source": str(state["source"])})


def _settled(job: Job, consumer: Consumer, checked: Future[None] | None) -> Resources:
    """The tools of the job, agreed on with the sink. Meanwhile the group takes us in."""

    def settle() -> Resources:
        tools = settled_resources(job)
        check(tools)
        checked.result() if checked else tools.sink.check()
        agree(tools)
        return tools

    with ThreadPoolExecutor(1, thread_name_prefix="settle") as pool:
        settled = pool.submit(settle)
        while not settled.done():
            consumer.receive(0, LOOK_S)
        return settled.result()


def _report(
    queue: str,
    tools: Resources,
    run_id: str,
    tally: WorkTally,
    started: float,
    *,
    stopped: bool,
) -> WorkReport:
    done, verdicts = tally.done, tally.verdicts
    return WorkReport(
        run_id=run_id,
        queue=queue,
        sink=tools.sink.url,
        recipe=tools.recipe.id,
        messages=tally.messages,
        recordings=done.recordings,
        rows=done.rows,
        failed=done.failed,
        there=verdicts["there"],
        left_out=verdicts["left out"],
        dropped=verdicts["dropped"],
        dead_letters=tally.dead_letters,
        errors=dict(done.errors),
        batches=tally.batches,
        audio_s=done.audio_s,
        wall_s=time.monotonic() - started,
        stages_s=dict(done.stages),
        commit_s=tally.commit_s,
        conflicts=tally.conflicts,
        written_bytes=tally.written_bytes,
        stopped=stopped,
    )
