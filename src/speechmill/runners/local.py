"""Shards in threads of this process: two at a time, so that while the model works on the one the
other is fetched, decoded and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from speechmill.job import Job
from speechmill.pipeline.shard import process_shard
from speechmill.records import RecordingDone, Shard, ShardReport

__all__ = ["LocalRunner"]

SHARDS_AT_ONCE = 2
LOOK_AROUND_S = 0.5
STOP_S = 30.0  # for the other shard to finish and commit what it has, when one has failed


class LocalRunner:
    """Runs shards in this process."""

    def run(
        self,
        job: Job,
        shards: Iterable[Shard],
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
                        running.add(
                            pool.submit(process_shard, job, shard, stop=stopping, on_done=on_done)
                        )
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
