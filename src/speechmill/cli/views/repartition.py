"""What a user sees of ``repartition``."""

from __future__ import annotations

from rich.console import Console

from speechmill.cli.views.facts import format_duration, print_facts
from speechmill.cli.views.progress import ProgressDisplay
from speechmill.export.repartition import Observer, RepartitionReport

__all__ = ["RepartitionDisplay", "print_repartitioned"]


class RepartitionDisplay(ProgressDisplay, Observer):
    """The display of rows that get written."""

    def planned(self, rows: int, files: int, resumed: int) -> None:
        """See ``Observer``."""
        there = f"; {resumed:,} files are there from before" if resumed else ""
        self.say(f"to do: {rows:,} rows in {files:,} files{there}")
        self.begin(rows)

    def progress(self, rows: int) -> None:
        """See ``Observer``."""
        rate = rows / self.elapsed_s
        self.show(rows, f"{rows:,}/{self._total:,.0f} rows  {rate:,.1f} rows/s")


def print_repartitioned(console: Console, report: RepartitionReport) -> None:
    """Print what was written."""
    facts = [
        ("groups", f"{report.partitions:,}"),
        ("files written", f"{report.files:,} ({report.rows:,} rows)"),
    ]
    if report.resumed:
        facts.append(("there already", f"{report.resumed:,} files"))
    facts += [("wall time", format_duration(report.wall_s)), ("dataset", report.out)]
    print_facts(console, "", facts)
