"""What a user sees of ``units fit``."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from speechmill.cli.views.build import PLAIN_EVERY_S, format_duration, print_facts
from speechmill.units.cluster import Quality
from speechmill.units.fit import FitReport

__all__ = ["FitDisplay", "print_fit"]

SHOWN = 10  # skipped recordings that are named
HOUR = 3600


class FitDisplay:
    """How a fit gets on: a bar on a terminal, a plain line now and then in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._started: float | None = None
        self._said = time.monotonic()

    def listed(self, count: int) -> None:
        """See ``FitObserver``."""
        self._say(f"{count:,} files listed")

    def heard(self, audio_s: float, target_s: float, recordings: int, skipped: int) -> None:
        """See ``FitObserver``."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
            self._begin(target_s)
        elapsed_s = max(now - self._started, 1e-9)
        lost = f"{skipped:,} skipped" if skipped else ""
        rate = f"{audio_s / elapsed_s:.1f} × real time"
        done = f"{audio_s / HOUR:.2f} of {target_s / HOUR:.2f} h"
        if self._progress:
            self._progress.update(
                self._progress.task_ids[0], completed=audio_s, done=done, rate=rate, lost=lost
            )
            return
        left = ""
        if audio_s:
            left = f"{format_duration(max(target_s - audio_s, 0) * elapsed_s / audio_s)} left"
        self._say("  ".join(filter(None, [done, f"{recordings:,} recordings", rate, left, lost])))

    def clustering(self, frames: int, clusters: int) -> None:
        """See ``FitObserver``."""
        self.close()
        self._console.print(
            f"clustering {frames:,} frames into {clusters:,} units", highlight=False
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()
        self._progress = None

    def _begin(self, target_s: float) -> None:
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[lost]}", style="red"),
            console=self._console,
            transient=True,
        )
        self._progress.add_task("fit", total=target_s, done="", rate="", lost="")
        self._progress.start()

    def _say(self, text: str) -> None:
        if not self._console.is_terminal and time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(text, highlight=False)


def print_fit(console: Console, report: FitReport) -> None:
    """Print what a fit heard, and how well the units fit."""
    rows = [
        (
            "heard",
            f"{format_duration(report.audio_s)} in {report.recordings:,} recordings of "
            f"{report.folders:,} folders",
        ),
        ("frames", f"{report.frames:,}"),
        ("trained on", _quality(report.trained, report.clusters)),
        (
            "held out",
            _quality(report.held_out, report.clusters)
            if report.held_out
            else "nothing: there was but one recording",
        ),
        ("skipped", f"{len(report.skipped):,} recordings"),
        ("wall time", format_duration(report.wall_s)),
        ("units", f"{report.out}  (sha256 {report.sha256})"),
        ("use", f"speechmill build SOURCE SINK --tokenizer units:{report.out}"),
    ]
    print_facts(console, "", rows)
    for name, reason in report.skipped[:SHOWN]:
        console.print(Text.assemble(("skipped  ", "yellow"), f"{name}: {reason}"), soft_wrap=True)
    if len(report.skipped) > SHOWN:
        console.print(f"… and {len(report.skipped) - SHOWN:,} more", highlight=False)


def _quality(quality: Quality, clusters: int) -> str:
    return (
        f"{quality.frames:,} frames: inertia {quality.inertia:.4g} a frame, "
        f"{quality.used:,} of {clusters:,} units used, perplexity {quality.perplexity:,.1f}"
    )
