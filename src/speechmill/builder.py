"""``build``: a job from its source to its sink, on whichever runner."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from queue import SimpleQueue
from statistics import fmean

from speechmill._version import __version__
from speechmill.dataset.layout import directory
from speechmill.dataset.run_log import RunLog, new_run_id
from speechmill.errors import SpeechmillError
from speechmill.job import Job
from speechmill.pipeline.agreement import agree, check, settled_resources
from speechmill.pipeline.cleanup import count_gone, prune, tidy
from speechmill.pipeline.planner import Plan, make_plan
from speechmill.pipeline.report import BuildReport, Tally
from speechmill.pipeline.resources import Resources
from speechmill.records import RecordingDone
from speechmill.runners import open_runner
from speechmill.runners.base import Runner
from speechmill.storage.base import CHECKS
from speechmill.storage.lookalikes import check_distinct

__all__ = ["Observer", "build", "plan"]

LIBRARIES = ("av", "ctranslate2", "faster-whisper", "numpy", "obstore", "pyarrow", "soxr")
ANOTHER_SINK = "use a bucket, a disk that tells them apart, or --partition-by hash:64"


class Observer:
    """Who watches a build: a progress display. Called from one thread."""

    def listed(self, count: int) -> None:
        """So many objects of the source have been listed; 0 when planning begins."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; the work begins."""

    def progress(self, tally: Tally) -> None:
        """So much is done. Called often, also when nothing is new."""


def plan(job: Job) -> Plan:
    """What ``build`` would do. Writes nothing.

    Raises:
        SpeechmillError: as ``build``.
    """
    tools = settled_resources(job)
    check(tools)
    made = make_plan(tools.job, tools.source, tools.sink, tools.recipe.id)
    if job.prune:
        made = replace(made, prunable=count_gone(tools.source, tools.sink, made))
    return made


def build(
    job: Job,
    *,
    runner: Runner | None = None,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BuildReport:
    """Make the rows that the sink lacks, and report.

    Recordings that fail do not stop it: they are in the report's ``failed`` and in the sink's
    failures. Once ``stop()`` is true, what is in hand is committed or given up, and the report
    says ``stopped``; the same job goes on from there.

    Raises:
        JobError: an option makes no sense, or the sink takes two folders for one.
        DatasetError: the sink holds rows of another source or recipe.
        ModelError: weights cannot be found, or the engine cannot run them.
        StorageError: a store cannot be reached, read or written, or lacks conditional puts.
    """
    started = time.monotonic()
    observer = observer or Observer()
    tools = settled_resources(job)
    job = tools.job
    check(tools)
    log = RunLog(tools.sink, run_id := new_run_id())
    log.event("started", version=__version__, source=tools.source.url, recipe=tools.recipe.id)
    with log.watching():
        made = _settled_plan(tools, observer)
        folders = map(directory, made.parts)
        check_distinct(tools.sink, folders, ANOTHER_SINK, scratch=f"{CHECKS}/")
        tidy(tools.sink, made)
        plan_s = time.monotonic() - started
        log.event(
            "planned",
            listed=made.listed,
            left_out=made.left_out,
            done=made.done,
            new=made.new,
            changed=made.changed,
            again=made.again,
            failed_before=made.failed,
            shards=len(made.shards),
        )
        observer.planned(made)
        work = _Work(log, observer)
        work.run(job, runner or open_runner(job), made, stop)
        pruned = prune(tools.source, tools.sink, made) if job.prune and not stop() else 0
    report = _report(tools, run_id, made, work, pruned, plan_s, time.monotonic() - started)
    _log_end(log, report)
    return report


class _Work:
    """The running of the shards, and what is counted meanwhile."""

    def __init__(self, log: RunLog, observer: Observer) -> None:
        self.log, self.observer = log, observer
        self.tally = Tally()
        self.commit_s = 0.0
        self.conflicts = 0
        self.mismatch: dict[str, list[float]] = {}
        self.stopped = False
        self._heard: SimpleQueue[RecordingDone] = SimpleQueue()

    def run(self, job: Job, runner: Runner, made: Plan, stop: Callable[[], bool]) -> None:
        reports = runner.run(job, made.shards, stop=stop, on_done=self._heard.put)
        for report in reports:
            self._count()
            if report is not None:
                self.commit_s += report.commit_s
                self.conflicts += report.conflicts
                for name, rates in report.mismatch.items():
                    self.mismatch.setdefault(name, []).append(fmean(rates))
                self.log.event(
                    "shard done",
                    shard=report.shard_index,
                    recordings=len(report.done),
                    wall_s=round(report.wall_s, 3),
                    commit_s=round(report.commit_s, 3),
                    conflicts=report.conflicts,
                    stopped=report.stopped,
                )
            self.log.flush()
        self._count()
        self.stopped = self.tally.recordings < made.num_recordings

    def _count(self) -> None:
        while not self._heard.empty():
            done = self._heard.get()
            self.tally.add(done)
            self.log.recording(done)
        self.observer.progress(self.tally)


def _report(
    tools: Resources,
    run_id: str,
    made: Plan,
    work: _Work,
    pruned: int,
    plan_s: float,
    wall_s: float,
) -> BuildReport:
    tally = work.tally
    return BuildReport(
        run_id=run_id,
        sink=tools.sink.url,
        recipe=tools.recipe.id,
        listed=made.listed,
        recordings=tally.recordings,
        rows=tally.rows,
        failed=tally.failed,
        gone=tally.gone,
        already_done=made.done,
        failed_before=made.failed,
        pruned=pruned,
        errors=dict(tally.errors),
        audio_s=tally.audio_s,
        wall_s=wall_s,
        plan_s=plan_s,
        stages_s=dict(tally.stages),
        commit_s=work.commit_s,
        conflicts=work.conflicts,
        token_mismatch={name: fmean(rates) for name, rates in work.mismatch.items()},
        seconds_mean=tally.seconds.mean,
        seconds_p50=tally.seconds.quantile(0.5),
        seconds_p95=tally.seconds.quantile(0.95),
        provenance={**_libraries(), **tools.transcriber.provenance},
        stopped=work.stopped,
    )


def _settled_plan(tools: Resources, observer: Observer) -> Plan:
    """The plan, agreed on with other builds. The sink is tried out while the source is listed."""
    observer.listed(0)
    with ThreadPoolExecutor(1, thread_name_prefix="check") as pool:
        checked = pool.submit(tools.sink.check)

        def listed(count: int) -> None:
            if checked.done():
                checked.result()
            observer.listed(count)

        def settle() -> None:
            checked.result()
            agree(tools)

        return make_plan(
            tools.job, tools.source, tools.sink, tools.recipe.id, settle=settle, on_listed=listed
        )


def _libraries() -> dict[str, str]:
    found = {"speechmill": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "machine": platform.machine(), "system": platform.platform()}


def _log_end(log: RunLog, report: BuildReport) -> None:
    count = max(1, report.recordings)
    log.timing(mean={k: round(v / count, 6) for k, v in report.stages_s.items()})
    log.timing(total={k: round(v, 6) for k, v in report.stages_s.items()})
    log.event(
        "stopped" if report.stopped else "finished",
        rows=report.rows,
        failed=report.failed,
        wall_s=round(report.wall_s, 3),
    )
    log.flush(now=True)
    with suppress(SpeechmillError):  # the rows are there; the report is told in any case
        log.report(report.to_dict())
