"""What a user sees of the commands that work on a dataset's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speechmill.cli.console import visible
from speechmill.cli.views.facts import HOUR, format_counts, format_duration, print_facts
from speechmill.cli.views.progress import ProgressDisplay
from speechmill.enrich.add import EnrichObserver, EnrichReport
from speechmill.tokens.stats import CodebookStats, ColumnStats
from speechmill.tokens.verify import VerifyObserver, VerifyReport
from speechmill.tokens.wav_files import DecodeObserver, DecodeReport

__all__ = [
    "AddDisplay",
    "DecodeDisplay",
    "RowsDisplay",
    "VerifyDisplay",
    "print_added",
    "print_decoded",
    "print_stats",
    "print_verified",
]

SHOWN = 10  # rows, recordings and codebooks that are named one by one


class RowsDisplay(ProgressDisplay):
    """The display of rows that get done, and then merged into the parts."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._merging = False

    def planned(self, rows: int, audio_s: float, resumed: int = 0) -> None:
        """So much is to be done; ``resumed`` rows lie ready from before."""
        ready = f"; {resumed:,} more lie ready from before" if resumed else ""
        self.say(f"to do: {rows:,} rows, {format_duration(audio_s)} of audio{ready}")
        self.begin(rows)

    def rows(self, rows: int, audio_s: float, failed: int) -> None:
        """So many rows are done, with or without success."""
        done = f"{rows:,}/{self._total:,.0f} rows  {rows / self.elapsed_s:,.1f} rows/s"
        if audio_s:
            speed = audio_s / self.elapsed_s
            done += f"  {audio_s / HOUR:.2f} h audio  {speed:.1f} × real time"
        self.show(rows, done, f"{failed:,} without" if failed else "")

    def merging(self, done: int, total: int) -> None:
        """So many of the parts have their new columns."""
        if not self._merging:
            self._merging = True
            self.close()
            self.begin(total)
        self.show(done, f"{done:,}/{total:,} parts written")

    def parts(self, done: int, total: int) -> None:
        """So many of a dataset's parts are read."""
        self.say_now_and_then(f"{done:,}/{total:,} parts read")


class AddDisplay(RowsDisplay, EnrichObserver):
    """The display of tokens that are added."""

    def progress(self, report: EnrichReport) -> None:
        """See ``EnrichObserver``."""
        lost = report.lost.total()
        self.rows(report.rows + lost, report.audio_s, lost)


class DecodeDisplay(RowsDisplay, DecodeObserver):
    """The display of rows that become sound."""

    def progress(self, report: DecodeReport) -> None:
        """See ``DecodeObserver``."""
        self.rows(report.done, report.audio_s, len(report.failed))


class VerifyDisplay(RowsDisplay, VerifyObserver):
    """The display of rows that are compared."""

    def progress(self, report: VerifyReport) -> None:
        """See ``VerifyObserver``."""
        lost = report.lost.total()
        self.rows(report.rows + lost, 0.0, lost)


def print_added(console: Console, report: EnrichReport) -> None:
    """Print what was added."""
    columns = ", ".join(report.columns)
    if report.already and not (report.rows or report.resumed or report.lost):
        console.print(
            f"nothing to do: {report.already:,} rows have {columns} already; {report.sink}",
            soft_wrap=True,
        )
        return
    name = "columns" if len(report.columns) > 1 else "column"
    facts = [(name, columns), ("rows", f"{report.rows:,}")]
    if report.resumed:
        facts.append(("ready from before", f"{report.resumed:,}"))
    if report.already:
        facts.append(("already there", f"{report.already:,}"))
    facts += _times(report)
    if report.mismatch and any(report.mismatch):
        rate = sum(report.mismatch) / len(report.mismatch)
        facts.append(
            ("differ if made anew", f"{rate:.4%} of codes: speechmill tokens verify {report.sink}")
        )
    if report.other:
        facts.append(("other recipes", f"{report.other:,} rows, left for build --rebuild"))
    if report.lost:
        facts.append(("without tokens", format_counts(report.lost)))
    facts += [("recipe", report.recipe), ("dataset", f"{report.sink}/data")]
    print_facts(console, "", facts)
    _print_reasons(console, report.reasons)


def print_decoded(console: Console, report: DecodeReport) -> None:
    """Print what was decoded."""
    facts = [("column", report.column), ("written", f"{report.written:,}")]
    if report.existing:
        facts.append(("there already", f"{report.existing:,} (--overwrite replaces them)"))
    if report.null:
        facts.append(("without tokens", f"{report.null:,}"))
    facts += [("failed", f"{len(report.failed):,}"), *_times(report), ("files", report.out)]
    print_facts(console, "", facts)
    _print_reasons(console, report.failed)


def _times(report: EnrichReport | DecodeReport) -> list[tuple[str, str]]:
    speed = f" ({report.audio_s / report.wall_s:.1f} × real time)" if report.audio_s else ""
    wall_time = f"{format_duration(report.wall_s)}{speed}"
    return [("audio", format_duration(report.audio_s)), ("wall time", wall_time)]


def print_verified(console: Console, report: VerifyReport) -> None:
    """Print what was found."""
    facts = [
        ("column", f"{report.column} ({report.name})"),
        ("rows compared", f"{report.rows:,} ({report.frames:,} frames)"),
    ]
    if report.lost:
        facts.append(("not compared", format_counts(report.lost)))
    facts.append(("values that differ", f"{report.rate:.4%}"))
    if report.largest is not None:
        facts.append(("largest difference", f"{report.largest:g}"))
    for index, rate in enumerate(report.differing if report.rate else ()):
        facts.append((f"  row {index} of {report.column}", f"{rate:.4%}"))
    if report.worst:
        facts.append(("most in", ", ".join(f"{name} ({r:.2%})" for r, name in report.worst)))
    print_facts(console, "", facts)
    _print_reasons(console, report.reasons)


def print_stats(console: Console, columns: Iterable[ColumnStats]) -> None:
    """Print how tokens are distributed."""
    for column in columns:
        facts = [
            ("rows", f"{column.rows:,}" + (f" ({column.null:,} null)" if column.null else "")),
            ("audio", f"{column.hours:.2f} h"),
            ("frames", f"{column.frames:,}, {column.frame_rate:g} a second"),
        ]
        if column.bits_per_s is not None and column.entropy_bits_per_s is not None:
            facts += [
                ("tokens a second", f"{column.tokens_per_s:.1f}"),
                (
                    "bits a second",
                    f"{column.bits_per_s:,.0f}; by entropy {column.entropy_bits_per_s:,.0f}",
                ),
            ]
        print_facts(console, f"{column.column} ({column.name})", facts)
        if column.codebooks:
            console.print(_codebooks(column.codebooks))
        elif column.features:
            table = Table("feature", "mean", "std", "min", "max", box=None)
            for f in column.features:
                table.add_row(str(f.index), *(f"{v:.4g}" for v in (f.mean, f.std, f.min, f.max)))
            console.print(table)


def _codebooks(codebooks: Iterable[CodebookStats]) -> Table:
    table = Table("codebook", "used", "of", "usage", "dead", "entropy", "perplexity", box=None)
    for c in codebooks:
        table.add_row(
            str(c.index),
            f"{c.used:,}",
            f"{c.size:,}",
            f"{c.usage:.1%}",
            f"{c.dead:,}",
            f"{c.entropy_bits:.2f} bits",
            f"{c.perplexity:,.1f}",
        )
    return table


def _print_reasons(console: Console, reasons: Mapping[str, str]) -> None:
    for name, reason in list(reasons.items())[:SHOWN]:
        console.print(Text(f"  {visible(name)}: {reason}", style="yellow"), soft_wrap=True)
    if len(reasons) > SHOWN:
        console.print(f"  … and {len(reasons) - SHOWN:,} more")
