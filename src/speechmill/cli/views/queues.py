"""What a user sees of queues: messages that are published, and a worker at work."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from speechmill.cli.views.build import (
    PLAIN_EVERY_S,
    format_bytes,
    format_duration,
    print_facts,
    print_plan,
)
from speechmill.pipeline.planner import Plan
from speechmill.queues.enqueue import EnqueueReport
from speechmill.queues.tally import WorkReport, WorkTally

__all__ = ["EnqueueDisplay", "WorkDisplay", "print_enqueued", "print_worked"]

HOUR = 3600


class EnqueueDisplay:
    """A bar on a terminal, a plain line now and then in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._started = self._said = time.monotonic()
        self._total = 0

    def listed(self, count: int) -> None:
        """See ``enqueue.Observer``."""
        if time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(f"planning: {count:,} files listed", highlight=False)

    def planned(self, plan: Plan) -> None:
        """See ``enqueue.Observer``."""
        print_plan(self._console, plan, brief=True)
        self._started = self._said = time.monotonic()
        self._total = plan.num_recordings
        if self._total and self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[done]}"),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("enqueue", total=self._total, done="")
            self._progress.start()

    def progress(self, published: int) -> None:
        """See ``enqueue.Observer``."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        rate = published / elapsed_s
        done = f"{published:,}/{self._total:,} messages  {rate:,.0f} a second"
        if self._progress:
            self._progress.update(self._task, completed=published, done=done)
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            left = format_duration((self._total - published) / max(rate, 1e-9))
            self._console.print(f"{done}  {left} left", highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()
            self._progress = None


def print_enqueued(console: Console, report: EnqueueReport) -> None:
    """Print what was published."""
    rate = report.published / max(report.publish_s, 1e-9)
    rows = [
        ("published", f"{report.published:,} messages ({rate:,.0f} a second)"),
        ("already done", f"{report.done:,}"),
        ("wall time", format_duration(report.wall_s)),
        ("queue", report.queue),
    ]
    if report.resumed:
        rows.insert(1, ("before", f"{report.resumed:,} by the run that was cut short"))
    if report.failed:
        rows.insert(1, ("failed before", f"{report.failed:,} (--retry-failed takes them, too)"))
    if report.stopped:
        rows.append(("stopped", "the same command goes on from here"))
    print_facts(console, "", rows)


class WorkDisplay:
    """A worker's lines: what it is doing, every so often while something happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at = self._started = time.monotonic()
        self._told = (0, 0)
        self._rate_from = (time.monotonic(), 0)

    def ready(self, queue: str, sink: str, metrics: str) -> None:
        """See ``tally.Observer``."""
        at = f"; metrics at http://{metrics}/metrics" if metrics else ""
        self._line(f"taking recordings from {queue} into {sink}{at}")
        self._rate_from = (time.monotonic(), 0)

    def said(self, text: str) -> None:
        """See ``tally.Observer``."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def batch(self, count: int, seconds: float) -> None:
        """See ``tally.Observer``."""

    def progress(self, tally: WorkTally) -> None:
        """See ``tally.Observer``."""
        now = time.monotonic()
        told = (tally.messages, tally.done.recordings)
        if now - self._said_at < PLAIN_EVERY_S or told == self._told:
            return
        since, before = self._rate_from
        rate = (tally.done.recordings - before) / max(now - since, 1e-9)
        self._rate_from = (now, tally.done.recordings)
        self._told, self._said_at = told, now
        lag = "" if tally.lag is None else f"  {tally.lag:,} waiting"
        left = ""
        if tally.lag and rate > 0:
            left = f"  {format_duration(tally.lag / rate)} left"
        bad = "".join(
            f"  {count:,} {what}"
            for count, what in (
                (tally.done.failed, "failed"),
                (tally.dead_letters, "dead letters"),
            )
            if count
        )
        self._line(
            f"{tally.done.recordings:,} recordings  {tally.done.audio_s / HOUR:.2f} h audio  "
            f"{rate:.1f} a second{lag}{left}{bad}"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left on the terminal."""


def print_worked(console: Console, report: WorkReport) -> None:
    """Print what a worker did."""
    rows = [
        ("rows", f"{report.rows:,}"),
        ("audio", format_duration(report.audio_s)),
        ("wall time", format_duration(report.wall_s)),
        ("messages", f"{report.messages:,} in {report.batches:,} batches"),
        ("already there", f"{report.there:,}"),
        ("failed", f"{report.failed:,}"),
        ("dead letters", f"{report.dead_letters:,}"),
        ("written", f"{format_bytes(report.written_bytes)}, {report.conflicts:,} conflicts"),
        ("dataset", f"{report.sink}/data"),
    ]
    if report.left_out:
        rows.insert(5, ("left out", f"{report.left_out:,}"))
    if report.dropped:
        rows.insert(5, ("dropped", f"{report.dropped:,}"))
    if report.run_id:
        rows.append(("run", report.run_id))
    print_facts(console, "", rows)
