"""What a user sees of queues: messages that are published, and a worker at work."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from speechmill.cli.views.facts import HOUR, format_bytes, format_duration, print_facts
from speechmill.cli.views.plan import PlanDisplay
from speechmill.cli.views.progress import PLAIN_EVERY_S, ProgressDisplay
from speechmill.queues import enqueue, tally
from speechmill.queues.enqueue import EnqueueReport
from speechmill.queues.tally import WorkReport, WorkTally

__all__ = ["EnqueueDisplay", "WorkDisplay", "print_enqueued", "print_worked"]


class EnqueueDisplay(PlanDisplay, enqueue.Observer):
    """The display of what is published."""

    def progress(self, published: int) -> None:
        """See ``enqueue.Observer``."""
        rate = published / self.elapsed_s
        self.show(published, f"{published:,}/{self._total:,.0f} messages  {rate:,.0f} a second")


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
    print_facts(console, "", rows)


class WorkDisplay(ProgressDisplay, tally.Observer):
    """A worker's lines: what it is doing, every so often while something happens."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._told = (0, 0)
        self._rate_from = (time.monotonic(), 0)

    def ready(self, queue: str, sink: str, metrics: str) -> None:
        """See ``tally.Observer``."""
        at = f"; metrics at http://{metrics}/metrics" if metrics else ""
        self.say(f"taking recordings from {queue} into {sink}{at}")
        self._rate_from = (time.monotonic(), 0)

    def said(self, text: str) -> None:
        """See ``tally.Observer``."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def progress(self, tally: WorkTally) -> None:
        """See ``tally.Observer``."""
        now = time.monotonic()
        told = (tally.messages, tally.done.recordings)
        if now - self._said < PLAIN_EVERY_S or told == self._told:
            return
        since, before = self._rate_from
        rate = (tally.done.recordings - before) / max(now - since, 1e-9)
        self._rate_from = (now, tally.done.recordings)
        self._told = told
        lag = "" if tally.lag is None else f"  {tally.lag:,} waiting"
        left = f"  {format_duration(tally.lag / rate)} left" if tally.lag and rate > 0 else ""
        bad = "".join(
            f"  {count:,} {what}"
            for count, what in ((tally.done.failed, "failed"), (tally.dead_letters, "dead letters"))
            if count
        )
        self.say(
            f"{tally.done.recordings:,} recordings  {tally.done.audio_s / HOUR:.2f} h audio  "
            f"{rate:.1f} a second{lag}{left}{bad}"
        )


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
