"""Shards in threads of this process: two at a time, so that while the model works on the one the
other is fetched, decoded and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from speechmill.job import Job
from speechmill.pipeline.shard import process_shard
from speechmill.records import RecordingDone, Shard, ShardReport
from speechmill.runners.base import AnyJob, AnyShard
from speechmill.runners.work import Task, run_task

__all__ = ["LocalRunner"]

SHARDS_AT_ONCE = 2
LOOK_AROUND_S = 0.5
STOP_S = 30.0  # for the other shard to finish and commit what it has, when one has failed


class LocalRunner:
    """Runs shards in this process."""

    def run(
        self,
        job: AnyJob,
        shards: Iterable[AnyShard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport | None]:
        """See ``Runner.run``."""
        failed = False

        def stopping() -> bool:
            return failed or stop()

        waiting = iter(shards)
        running: set[Future[ShardReport]] = set()
        pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard")
        try:
            while True:
                if not stopping():
                    for shard in islice(waiting, SHARDS_AT_ONCE - len(running)):
                        task = Task(job, shard, "")
                        running.add(pool.submit(_do, task, stopping, on_done))
                if not running:
                    return
                finished, running = wait(running, LOOK_AROUND_S, FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                if not finished:
                    yield None
        except BaseException:
            failed = True
            wait(running, STOP_S)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _do(
    task: Task, stop: Callable[[], bool], on_done: Callable[[RecordingDone], None]
) -> ShardReport:
    if isinstance(task.job, Job) and isinstance(task.shard, Shard):
        return process_shard(task.job, task.shard, stop=stop, on_done=on_done)
    return run_task(task, stop=stop)
