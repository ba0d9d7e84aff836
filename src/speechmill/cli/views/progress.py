"""How work gets on: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from speechmill.cli.views.facts import format_duration

__all__ = ["PLAIN_EVERY_S", "ProgressDisplay"]

PLAIN_EVERY_S = 15.0  # a line in a log every so often: four a minute say enough


class ProgressDisplay:
    """The display of one piece of work; what it does is told by a class below this one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._started = self._said = time.monotonic()
        self._total = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began; never 0."""
        return max(time.monotonic() - self._started, 1e-9)

    def begin(self, total: float) -> None:
        """Begin work of so much."""
        self._started = self._said = time.monotonic()
        self._total = total
        if not total or not self._console.is_terminal:
            return
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[failed]}", style="red"),
            console=self._console,
            transient=True,
        )
        self._bar.add_task("", total=total, done="", failed="")
        self._bar.start()

    def show(self, completed: float, done: str, failed: str = "") -> None:
        """So much is done, in numbers and in words; what failed stands apart."""
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=completed, done=done, failed=failed)
        elif self._total:
            left = ""
            if completed:
                left_s = max(self.elapsed_s * (self._total / completed - 1), 0.0)
                left = f"{format_duration(left_s)} left"
            self.say_now_and_then("  ".join(filter(None, (done, left, failed))))

    def say(self, text: str) -> None:
        """Print a line, also a long one."""
        self._said = time.monotonic()
        self._console.print(text, soft_wrap=True)

    def say_now_and_then(self, text: str) -> None:
        """Print a line, unless there was one a moment ago."""
        if time.monotonic() - self._said >= PLAIN_EVERY_S:
            self.say(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
        self._bar = None
