"""What an engine takes beyond the work itself, and what a second worker brings.

Each worker has one core, and is kept to it: its other threads would take a twentieth of a second
one, which two workers on two cores do not have. One worker of each engine is set against a local
build that has one core, and two workers against one. They take turns, on the same recordings: the
corpus, several times over; an engine runs in its own turn only, for an idle one takes some of a
core, too. Starting processes and loading models is left out on all sides: the clock runs from the
first shard that a worker begins with its model loaded, to the end of the last one. Processor time
is the workers' own; "between shards" is the share of the time in which a worker had ended a shard
and not yet begun the next: both suffer less from what else the machine does.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from benchmarks.figures import command, machine, print_table
from benchmarks.overhead import CORPUS, read_corpus
from speechmill import Job, build
from speechmill.machine import limit_cores
from speechmill.pipeline.resources import open_resources
from speechmill.records import ShardReport, Speech
from speechmill.runners.base import Runner
from speechmill.runners.local import LocalRunner
from speechmill.runners.work import Task, run_task

LOCAL = ("local", 1)
ENGINES = ("dask", "ray", "spark")
CORES_A_WORKER = 1


@dataclass(frozen=True)
class Timed:
    """What a worker does: a task, and a note of when it began and ended, in ``folder``."""

    folder: str

    def __call__(self, task: Task, **more: Any) -> ShardReport:
        """Do a task."""
        limit_cores(CORES_A_WORKER)
        take_core(self.folder)
        if isinstance(task.job, Job):
            warm(task.job)
        begun, cpu_s = time.time(), time.process_time()
        report = run_task(task, **more)
        cpu_s = time.process_time() - cpu_s
        note = Path(self.folder, f"{task.shard.index}-{task.attempt}")
        note.write_text(f"{os.getpid()} {begun} {time.time()} {cpu_s}")
        return report


def take_core(folder: str) -> None:
    """Keep this process to a core that no other has taken, if there is one; ``folder`` knows."""
    pid = str(os.getpid())
    for core in range(os.cpu_count() or 1):
        taken = Path(folder, f"core-{core}")
        with suppress(FileExistsError):
            taken.symlink_to(pid)
        if str(taken.readlink()) == pid:
            for thread in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})
            return


@dataclass(frozen=True)
class Cost:
    """What one turn of a side took, in seconds; ``waiting`` is a share of the workers' time."""

    wall_s: float
    cpu_s: float
    waiting: float = 0.0


def warm(job: Job) -> None:
    """Load the model."""
    transcriber = open_resources(job).transcriber
    samples = read_silence(transcriber.sample_rate)
    transcriber.transcribe([Speech(samples)])


def read_silence(sample_rate: int) -> Any:
    """Half a second of faint noise, float32 [num_samples]: silence may be left out by a model."""
    import numpy as np

    noise = np.random.default_rng(0).normal(0, 1e-3, sample_rate // 2)
    return noise.astype(np.float32)


@contextmanager
def on_one_core() -> Iterator[None]:
    """This thread, and those that it begins, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def local(job: Job) -> Cost:
    """A local build, on one core: its other threads would take a fifth of a second one."""
    with on_one_core():
        warm(job)
        cpu_s = time.process_time()
        report = build(job, runner=LocalRunner())
        return Cost(report.wall_s - report.plan_s, time.process_time() - cpu_s)


def on_engine(job: Job, runner: Callable[[Timed], Runner]) -> Cost:
    """A build on an engine."""
    with tempfile.TemporaryDirectory() as notes:
        build(job, runner=runner(Timed(notes)))
        spans = sorted(
            tuple(map(float, note.read_text().split()))
            for note in Path(notes).iterdir()
            if not note.is_symlink()
        )
    waiting_s = sum(
        begun - ended
        for (pid, _, ended, _), (other, begun, _, _) in pairwise(spans)
        if pid == other
    )
    working_s = sum(ended - begun for _, begun, ended, _ in spans)
    return Cost(
        max(span[2] for span in spans) - min(span[1] for span in spans),
        sum(span[3] for span in spans),
        waiting_s / (waiting_s + working_s),
    )


def start(name: str, workers: int, stack: ExitStack) -> Callable[[Timed], Runner]:
    """Start an engine of so many workers, of one core each. Returns what makes its runner."""
    if name == "dask":
        from distributed import Client, LocalCluster

        from speechmill.runners.dask import DaskRunner

        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
            memory_limit=0,
        )
        stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        return lambda work: DaskRunner(client, work=work)
    if name == "spark":
        from tests.support.spark_sessions import spark_session

        from speechmill.runners.spark import SparkRunner

        session = spark_session(workers)
        stack.callback(session.stop)
        return lambda work: SparkRunner(session, work=work)
    import ray

    from speechmill.runners.ray import RayRunner
    from speechmill.runners.ray_clusters import start_here

    RayRunner()  # what it sets for Ray
    start_here(ray, workers, stack)
    return lambda work: RayRunner(work=work)


def repeated(corpus: Path, folder: Path, copies: int) -> int:
    """Copy the corpus so many times over. Returns the number of recordings."""
    recordings = read_corpus(corpus, None)
    for copy in range(copies):
        for name, data in recordings.items():
            path = folder / f"{copy}_{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return copies * len(recordings)


def take_turns(
    job: Job, engines: Sequence[str], workers: int, repeats: int, folder: Path
) -> dict[tuple[str, int], list[Cost]]:
    """What each side cost, one a turn."""
    sides = [LOCAL, *((name, count) for name in engines for count in (1, workers))]
    took: dict[tuple[str, int], list[Cost]] = {side: [] for side in sides}
    for turn in range(repeats):
        for name, of_name in groupby(sides[:: -1 if turn % 2 else 1], key=lambda side: side[0]):
            with ExitStack() as stack:
                measure: Callable[[Job], Cost] = local
                if name != LOCAL[0]:
                    measure = partial(on_engine, runner=start(name, workers, stack))
                for side in of_name:
                    sink = folder / f"{turn}-{side[0]}-{side[1]}"
                    took[side].append(
                        measure(job.model_copy(update={"sink": str(sink), "workers": side[1]}))
                    )
                    shutil.rmtree(sink)
                    print(f"turn {turn}: {side[0]}, {side[1]}: {took[side][-1]}", file=sys.stderr)
    return took


def main() -> None:
    """Measure, and print."""
    parser = command("engines", __doc__, "--model tiny.en --copies 8 --repeats 5")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of speech")
    parser.add_argument("--copies", type=int, default=4, help="take the corpus so many times")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="[all]")
    parser.add_argument("--workers", type=int, default=2, help="set against one")
    parser.add_argument("--transcriber", default="whisper", help="whisper or fake")
    parser.add_argument("--model", default="tiny.en", help="tiny.en, base, or fake:SECONDS")
    parser.add_argument("--part-minutes", type=float, default=2.0, help="audio of a part")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    options: argparse.Namespace = parser.parse_args()
    limit_cores(CORES_A_WORKER)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = repeated(options.corpus, folder / "source", options.copies)
        job = Job(
            source=str(folder / "source"),
            sink=str(folder / "sink"),
            transcriber=options.transcriber,
            model=options.model,
            threads=CORES_A_WORKER,
            part_minutes=options.part_minutes,
        )
        engines = options.engine or ENGINES
        took = take_turns(job, engines, options.workers, options.repeats, folder)
    print(f"{count} recordings; medians of {options.repeats}, and all ratios")
    rows = []
    for (engine, workers), costs in took.items():
        walls, cpus = ([c.wall_s for c in costs], [c.cpu_s for c in costs])
        ones = took[engine, 1]
        rows.append(
            (
                f"{engine}, {workers} worker{'s' * (workers > 1)}",
                f"{statistics.median(walls):.1f} s",
                _ratio(walls, [c.wall_s for c in took[LOCAL]]) if workers == 1 else "",
                _ratio(cpus, [c.cpu_s for c in took[LOCAL]]),
                f"{statistics.median(c.waiting for c in costs):.2%}" if engine != "local" else "",
                _ratio([c.wall_s for c in ones], walls) if workers > 1 else "",
            )
        )
    header = ("", "takes", "to local's time", "to its processor time", "between shards")
    print_table((*header, "speed, to 1 worker's"), rows)


def _ratio(some: Sequence[float], others: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(some, others, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
