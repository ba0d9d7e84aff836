"""Shards on an engine's workers, elsewhere: what all engines have in common.

The engine is given a few tasks at a time, the largest first, so that the last worker does not work
alone for long and the engine's scheduler holds little. A worker's death is counted here, not by the
engine: its task is given to another one, after ``max_attempts`` in halves, and what is alone then
is set aside as a failure.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from speechmill.enrich.shards import Enrichment
from speechmill.errors import JobError, WorkerDiedError
from speechmill.pipeline.resources import open_resources
from speechmill.records import RecordingDone, ShardReport
from speechmill.runners.base import AnyJob, AnyShard
from speechmill.runners.work import Task, halves, set_aside

__all__ = [
    "GOES_ON",
    "NO_WORKERS_S",
    "ClusterRunner",
    "Engine",
    "first_line",
    "listens",
    "settings",
]

LOOK_AROUND_S = 0.5
MAX_DEATHS = 24  # in a row: one recording of a thousand is found in 13, so it is not the recordings
KNOCK_S = 5.0
NO_WORKERS_S = 300.0  # a cluster that has none for so long will not get any
GOES_ON = "once there is a cluster again, the same command goes on from here"

_log = logging.getLogger(__name__)

H = TypeVar("H")


class Engine(Protocol[H]):
    """What runs tasks in processes of its own. ``H`` is its handle for one that was submitted."""

    def slots(self) -> int:
        """How many tasks it runs at the same time, as of now; 0 while it has no workers.

        Raises:
            EngineError: the engine itself has gone, or no worker comes.
        """

    def submit(self, task: Task) -> H:
        """Begin a task: ``run_task(task)`` in one of its processes."""

    def finished(self, handles: Sequence[H], timeout_s: float) -> Sequence[H]:
        """Those of the handles that are done, after at most so many seconds.

        Raises:
            EngineError: the engine itself has gone.
        """

    def result(self, handle: H) -> ShardReport:
        """What came of a task that is done.

        Raises:
            WorkerDiedError: its process has died.
            EngineError: the engine itself has gone.
            SpeechmillError: what ``run_task`` raised.
        """

    def cancel(self, handles: Sequence[H]) -> None:
        """Give up tasks. Those that run may commit first what they have done. Must not raise."""

    def close(self) -> None:
        """End what was started for this run. Must not raise."""


class ClusterRunner(Generic[H]):
    """Runs shards on the engine that ``start`` connects to, or starts, for so many tasks at most;
    it is called when the first shard is there."""

    def __init__(self, start: Callable[[AnyJob, int], Engine[H]]) -> None:
        self._start = start

    def run(
        self,
        job: AnyJob,
        shards: Iterable[AnyShard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport | None]:
        """See ``Runner.run``."""
        ordered = sorted(shards, key=lambda shard: shard.num_bytes, reverse=True)
        if not ordered:
            return
        if job.single_writer:
            raise JobError(
                "single_writer is for one process, and an engine has several: use --engine local, "
                "or a store that has conditional puts"
            )
        with closing(self._start(job, len(ordered))) as engine:
            recipe = "" if isinstance(job, Enrichment) else open_resources(job).recipe.id
            waiting = deque(Task(job, shard, recipe) for shard in ordered)
            running: dict[H, Task] = {}
            deaths = 0  # in a row
            try:
                while (waiting or running) and not stop():
                    while waiting and len(running) < engine.slots():
                        task = waiting.popleft()
                        running[engine.submit(task)] = task
                    finished = _finished(engine, list(running))
                    for handle in finished:
                        outcome = _outcome(engine, handle, running.pop(handle), deaths)
                        if not isinstance(outcome, ShardReport):
                            deaths += 1
                            waiting.extendleft(outcome)
                            yield None
                            continue
                        deaths = 0 if outcome.got_on else deaths
                        for done in outcome.done:
                            on_done(done)
                        yield outcome
                    if not finished:
                        yield None
            finally:
                engine.cancel(list(running))


def _finished(engine: Engine[H], handles: Sequence[H]) -> Sequence[H]:
    if not handles:  # there are no workers as yet
        time.sleep(LOOK_AROUND_S)
        return ()
    return engine.finished(handles, LOOK_AROUND_S)


def _outcome(engine: Engine[H], handle: H, task: Task, deaths: int) -> ShardReport | Sequence[Task]:
    """What came of a task: its report, or what others are to do where its worker has died. A task
    that too many have died of is halved, until what they die of is alone."""
    try:
        return engine.result(handle)
    except WorkerDiedError as error:
        task = replace(task, attempt=task.attempt + 1)
        _log.warning("shard %d, attempt %d: %s", task.shard.index, task.attempt, error)
        if task.attempt < task.job.max_attempts:
            return [task]
        return (halves(task) if deaths < MAX_DEATHS else ()) or set_aside(task, error)


def first_line(error: BaseException) -> str:
    """The first line of an error that may come with a page."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def listens(host: str, port: int) -> bool:
    """Whether something listens there."""
    with suppress(OSError), socket.create_connection((host.strip("[]"), port), KNOCK_S):
        return True
    return False


@contextmanager
def settings(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile, where the user has not set them."""
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
