"""Shards in threads of this process: two at a time, so that while the model works on the one the
other is fetched, decoded and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice

from speechmill.job import Job
from speechmill.pipeline.resources import open_resources
from speechmill.pipeline.shard import process_shard
from speechmill.pipeline.suspects import DEATHS_ALONE, CrashCounts, InHand, give_up
from speechmill.records import Part, Recording, RecordingDone, Shard, ShardReport
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

        in_hand: InHand | None = None
        waiting = iter(shards)
        running: set[Future[ShardReport]] = set()
        pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard")
        try:
            while True:
                if not stopping():
                    if isinstance(job, Job) and in_hand is None:
                        in_hand = InHand(open_resources(job).sink)
                    at_once = 1 if in_hand and in_hand.has_suspects else SHARDS_AT_ONCE
                    for shard in islice(waiting, at_once - len(running)):
                        task = Task(job, shard, "")
                        running.add(pool.submit(_do, task, in_hand, stopping, on_done))
                if not running:
                    if in_hand is not None and not stopping():
                        in_hand.forget()
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
    task: Task,
    in_hand: InHand | None,
    stop: Callable[[], bool],
    on_done: Callable[[RecordingDone], None],
) -> ShardReport:
    job, shard = task.job, task.shard
    if in_hand is None or not isinstance(job, Job) or not isinstance(shard, Shard):
        return run_task(task, stop=stop)
    done: list[RecordingDone] = []
    rest: list[tuple[Part, list[Recording]]] = []
    for part, recordings in shard.parts:
        rest.append((part, []))
        for recording in recordings:
            if not in_hand.is_suspect(recording.file_name):
                rest[-1][1].append(recording)
            elif not stop():
                done += _alone(job, Shard(shard.index, [(part, [recording])]), on_done).done
    rest = [(part, some) for part, some in rest if some]
    with in_hand.note([recording.file_name for _, some in rest for recording in some]):
        report = process_shard(job, Shard(shard.index, rest), stop=stop, on_done=on_done)
    return replace(report, done=(*done, *report.done))


def _alone(job: Job, shard: Shard, on_done: Callable[[RecordingDone], None]) -> ShardReport:
    """Work on a recording that may have ended processes, with nothing else in hand; give it up
    where it has ended them alone, too."""
    resources = open_resources(job)
    ((part, (recording,)),) = shard.parts
    counts = CrashCounts(resources.sink, DEATHS_ALONE)
    if counts.begin(recording.file_name):
        report = process_shard(job, shard, on_done=on_done)
    else:
        (failure,) = give_up(resources, part, [recording], counts.message)
        report = ShardReport(
            shard.index, (RecordingDone(recording.file_name, recording.size, failure=failure),)
        )
        on_done(report.done[0])
    counts.clear(recording.file_name)
    return report
