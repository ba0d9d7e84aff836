"""Shards on an engine's workers, elsewhere: what all engines have in common.

The engine is given a few tasks at a time, the largest first, so that the last worker does not work
alone for long and the engine's scheduler holds little. A worker's death is counted here, not by the
engine: its task is given to another one, and after ``max_attempts`` it is set aside as failures.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from speechmill.enrich.shards import Enrichment
from speechmill.errors import JobError, WorkerDiedError
from speechmill.pipeline.resources import open_resources
from speechmill.records import RecordingDone, ShardReport
from speechmill.runners.base import AnyJob, AnyShard
from speechmill.runners.work import Task, set_aside

__all__ = ["ClusterRunner", "Engine"]

LOOK_AROUND_S = 0.5

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
        """Give up tasks, also those that run; what they have done may be committed first. Must not
        raise."""

    def close(self) -> None:
        """End what was started for this run. Must not raise."""


class ClusterRunner(Generic[H]):
    """Runs shards on an engine.

    Args:
        start: connects to the engine, or starts a local one; called when the first shard is there.
    """

    def __init__(self, start: Callable[[AnyJob], Engine[H]]) -> None:
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
        waiting = deque(sorted(shards, key=lambda shard: shard.num_bytes, reverse=True))
        if not waiting:
            return
        if job.single_writer:
            raise JobError(
                "single_writer is for one process, and an engine has several: use --engine local, "
                "or a store that has conditional puts"
            )
        engine = self._start(job)
        try:
            yield from _Run(job, engine, waiting, stop, on_done).run()
        finally:
            engine.close()


class _Run(Generic[H]):
    """One run: what waits, and what the engine has."""

    def __init__(
        self,
        job: AnyJob,
        engine: Engine[H],
        shards: Iterable[AnyShard],
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> None:
        self.job, self.engine, self.stop, self.on_done = job, engine, stop, on_done
        recipe = "" if isinstance(job, Enrichment) else open_resources(job).recipe.id
        self.waiting = deque(Task(job, shard, recipe) for shard in shards)
        self.running: dict[H, Task] = {}

    def run(self) -> Iterator[ShardReport | None]:
        try:
            while (self.waiting or self.running) and not self.stop():
                while self.waiting and len(self.running) < self.engine.slots():
                    task = self.waiting.popleft()
                    self.running[self.engine.submit(task)] = task
                finished = self._finished()
                for handle in finished:
                    yield self._collect(handle)
                if not finished:
                    yield None
        finally:
            self.engine.cancel(list(self.running))

    def _finished(self) -> Sequence[H]:
        if not self.running:  # there are no workers as yet
            time.sleep(LOOK_AROUND_S)
            return ()
        return self.engine.finished(list(self.running), LOOK_AROUND_S)

    def _collect(self, handle: H) -> ShardReport | None:
        task = self.running.pop(handle)
        try:
            report = self.engine.result(handle)
        except WorkerDiedError as error:
            task = task.again()
            _log.warning("shard %d, attempt %d: %s", task.shard.index, task.attempt, error)
            if task.attempt < self.job.max_attempts:
                self.waiting.appendleft(task)
                return None
            report = set_aside(task, error)
        for done in report.done:
            self.on_done(done)
        return report
