"""What workers do in tests of engines. They note it in a file beside the sink: who, what, when."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np

from speechmill.enrich import measures
from speechmill.errors import ModelError
from speechmill.machine import num_cores
from speechmill.measures.base import Measure, Values
from speechmill.pipeline.intake import ReadyRow
from speechmill.records import Shard, ShardReport
from speechmill.runners.base import AnyJob
from speechmill.runners.work import Task, run_task

__all__ = [
    "DEADLY",
    "Note",
    "churn",
    "deadly",
    "die_of_a_row",
    "die_of_one",
    "linger",
    "notes",
    "nothing",
    "refuse",
    "stumble",
    "tell",
]


DEADLY = "p2/1.wav"


def never() -> bool:
    return False


@dataclass(frozen=True)
class Note:
    """One line: ``what`` is begun, ended, dies or stopped; ``at`` counts seconds."""

    what: str
    pid: int
    shard: int
    attempt: int
    cores: int
    at: float


def _file(job: AnyJob) -> Path:
    return Path(f"{job.sink}-notes")


def has_folder(task: Task, name: str) -> bool:
    """Whether a build's task has recordings of this folder."""
    shard = task.shard
    return isinstance(shard, Shard) and any(part.folder_name == name for part, _ in shard.parts)


def _note(task: Task, what: str) -> None:
    line = f"{what} {os.getpid()} {task.shard.index} {task.attempt} {num_cores()} {time.time()}\n"
    with _file(task.job).open("a") as file:
        file.write(line)


def notes(job: AnyJob, what: str = "begun") -> list[Note]:
    """What the workers have noted so far."""
    if not _file(job).exists():
        return []
    found = []
    for line in _file(job).read_text().splitlines():
        kind, pid, shard, attempt, cores, at = line.split()
        if kind == what:
            found.append(Note(kind, int(pid), int(shard), int(attempt), int(cores), float(at)))
    return found


def tell(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    _note(task, "begun")
    report = run_task(task, stop=stop) if stop is not never else run_task(task)
    _note(task, "ended")
    return report


def die_of_one(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    """Do a task; be killed by one recording of the folder p2."""
    if isinstance(task.shard, Shard) and any(
        recording.key == "p2/1.wav" for _, some in task.shard.parts for recording in some
    ):
        _note(task, "dies")
        os.kill(os.getpid(), signal.SIGKILL)
    return run_task(task)


@contextmanager
def deadly(file_name: str, by: signal.Signals = signal.SIGSEGV) -> Iterator[None]:
    """A row of this recording ends the process that measures it, as a fault in native code
    would."""
    measure_rows = vars(measures)["measure_rows"]

    def rough(measure: Measure, rows: Sequence[ReadyRow], *more: Any) -> list[Values]:
        if any(row.owner.recording.file_name == file_name for row in rows):
            os.kill(os.getpid(), by)
        made: list[Values] = measure_rows(measure, rows, *more)
        return made

    with patch.object(measures, "measure_rows", rough):
        yield


def die_of_a_row(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    """Do a task of an enrichment; be ended by a row of ``DEADLY``."""
    _note(task, "begun")
    with deadly(DEADLY, signal.SIGKILL):  # Ray's workers catch the other one, and go on
        report = run_task(task)
    _note(task, "ended")
    return report


def linger(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    """Do nothing for as long as nobody says to stop."""
    _note(task, "begun")
    deadline = time.monotonic() + 60
    while not stop() and time.monotonic() < deadline:
        time.sleep(0.05)
    _note(task, "stopped")
    return ShardReport(task.shard.index, stopped=True)


def nothing(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    return ShardReport(task.shard.index)


def churn(task: Task, *, stop: Callable[[], bool] = never) -> ShardReport:
    """Take and free 4 MB a hundred times, as a model does; note it where that asked the system for
    most of the memory anew each time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(4 * 2**20, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    if faults * resource.getpagesize() > 50 * 4 * 2**20:
        _note(task, "thrashes")
    return run_task(task)


def refuse(task: Task, *, stop: Callable[[], bool] = never) -> NoReturn:
    raise ModelError(f"no such weights on {os.getpid()}")


def stumble(task: Task, *, stop: Callable[[], bool] = never) -> NoReturn:
    raise ZeroDivisionError("nobody foresaw\nthis")
