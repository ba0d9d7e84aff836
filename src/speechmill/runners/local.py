"""Shards in threads of this process: two at a time, so that while the model works on the one the
other is fetched, decoded and committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
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
        turns = _Turns()
        waiting = iter(shards)
        running: set[Future[ShardReport]] = set()
        pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard")
        try:
            while True:
                if not stopping():
                    if isinstance(job, Job) and in_hand is None:
                        in_hand = InHand(open_resources(job).sink)
                    for shard in islice(waiting, SHARDS_AT_ONCE - len(running)):
                        task = Task(job, shard, "")
                        running.add(pool.submit(_do, task, in_hand, turns, stopping, on_done))
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


class _Turns:
    """Shards share the process; what may end it has it alone."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(SHARDS_AT_ONCE)
        self._one_waits = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._free:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._one_waits, ExitStack() as stack:
            for _ in range(SHARDS_AT_ONCE):
                stack.enter_context(self._free)
            yield


def _do(
    task: Task,
    in_hand: InHand | None,
    turns: _Turns,
    stop: Callable[[], bool],
    on_done: Callable[[RecordingDone], None],
) -> ShardReport:
    job, shard = task.job, task.shard
    if in_hand is None or not isinstance(job, Job) or not isinstance(shard, Shard):
        return run_task(task, stop=stop)
    reports: list[ShardReport] = []
    rest: list[tuple[Part, list[Recording]]] = []
    for part, recordings in shard.parts:
        rest.append((part, []))
        for recording in recordings:
            if not in_hand.is_suspect(recording.file_name):
                rest[-1][1].append(recording)
            elif not stop():
                one = Shard(shard.index, [(part, [recording])])
                with turns.alone():
                    reports.append(_alone(job, one, stop, on_done))
    rest = [(part, some) for part, some in rest if some]
    with turns.shared(), in_hand.note([r.file_name for _, some in rest for r in some]):
        reports.append(process_shard(job, Shard(shard.index, rest), stop=stop, on_done=on_done))
    in_hand.done(done.file_name for one in reports for done in one.done)
    return replace(
        reports[-1],
        done=tuple(done for one in reports for done in one.done),
        commit_s=sum(one.commit_s for one in reports),
        conflicts=sum(one.conflicts for one in reports),
        written_bytes=sum(one.written_bytes for one in reports),
    )


def _alone(
    job: Job, shard: Shard, stop: Callable[[], bool], on_done: Callable[[RecordingDone], None]
) -> ShardReport:
    """Work on a recording that may have ended processes, with nothing else in hand; give it up
    where it has ended them alone, too."""
    resources = open_resources(job)
    ((part, (recording,)),) = shard.parts

    def work() -> ShardReport | None:
        report = process_shard(job, shard, stop=stop, on_done=on_done)
        return report if report.done else None

    def give_it_up(why: str) -> ShardReport:
        (failure,) = give_up(resources, part, [recording], why)
        done = RecordingDone(recording.file_name, recording.size, failure=failure)
        on_done(done)
        return ShardReport(shard.index, (done,))

    counts = CrashCounts(resources.sink, DEATHS_ALONE)
    made = counts.alone(recording.file_name, work, give_it_up)
    return made or ShardReport(shard.index, stopped=True)
