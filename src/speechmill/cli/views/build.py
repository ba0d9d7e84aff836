"""What a user sees: the progress of a build, and tables of what came out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

from speechmill.cli.doctor import Check
from speechmill.dataset.summary import Summary
from speechmill.pipeline.planner import Plan
from speechmill.pipeline.report import BuildReport, Tally
from speechmill.recipe import Recipe

__all__ = [
    "PLAIN_EVERY_S",
    "BuildDisplay",
    "format_bytes",
    "format_duration",
    "print_checks",
    "print_facts",
    "print_plan",
    "print_report",
    "print_summary",
]

PLAIN_EVERY_S = 15.0
KIB = 1024
MINUTE, HOUR = 60, 3600
MOST = 12  # folders, languages and flags that a summary names


def format_bytes(count: int) -> str:
    """12.3 MB and the like (powers of 1,024)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < KIB or unit == "TB":
            break
        size /= KIB
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def format_duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min and the like."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE):02d} s"
    return f"{int(seconds // HOUR):,} h {int(seconds % HOUR // MINUTE):02d} min"


def print_facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, a line each; nothing is cut or broken, also in a pipe."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in rows:
        console.print(Text.assemble((name.ljust(width), "dim"), "  ", value), soft_wrap=True)


class BuildDisplay:
    """One display of a build: a bar on a terminal, a plain line now and then in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._status: Status | None = None
        self._started = self._said = time.monotonic()
        self._total = self._num_bytes = 0

    def listed(self, count: int) -> None:
        """See ``Observer``."""
        text = f"planning: {count:,} files listed" if count else "planning: listing the source"
        if self._console.is_terminal:
            self._status = self._status or self._console.status(text)
            self._status.update(text)
            self._status.start()
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(text, highlight=False)

    def planned(self, plan: Plan) -> None:
        """See ``Observer``."""
        if self._status:
            self._status.stop()
        self._started = self._said = time.monotonic()
        self._total, self._num_bytes = plan.num_recordings, plan.num_bytes
        print_plan(self._console, plan, brief=True)
        if not self._total or not self._console.is_terminal:
            return
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[failed]}", style="red"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "build", total=self._num_bytes, done="", rate="", failed=""
        )
        self._progress.start()

    def progress(self, tally: Tally) -> None:
        """See ``Observer``."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        rate = f"{tally.audio_s / HOUR:.2f} h audio  {tally.audio_s / elapsed_s:.1f} × real time"
        failed = f"{tally.failed} failed" if tally.failed else ""
        done = f"{tally.recordings:,}/{self._total:,} recordings"
        if self._progress:
            self._progress.update(
                self._task, completed=tally.num_bytes, done=done, rate=rate, failed=failed
            )
        elif self._total and time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            left_s = elapsed_s * (self._num_bytes / max(tally.num_bytes, 1) - 1)
            left = f"{format_duration(max(left_s, 0))} left" if tally.num_bytes else ""
            self._console.print(
                "  ".join(
                    filter(
                        None,
                        [done, rate, left, failed],
                    )
                ),
                highlight=False,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        for shown in (self._status, self._progress):
            if shown:
                shown.stop()
        self._progress = self._status = None


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def print_plan(console: Console, plan: Plan, *, brief: bool = False) -> None:
    """Print what is to be done."""
    again = f", {plan.again:,} again" if plan.again else ""
    to_do = f"{plan.num_recordings:,} ({plan.new:,} new, {plan.changed:,} changed{again})"
    rows = [
        (
            "to do",
            f"{to_do}, {format_bytes(plan.num_bytes)}, in {_plural(len(plan.shards), 'shard')}",
        ),
        ("already done", f"{plan.done:,}"),
    ]
    if plan.elsewhere:
        rows.append(("elsewhere", f"{plan.elsewhere:,} in the parts of other shard indices"))
    if plan.failed:
        rows.append(("failed before", f"{plan.failed:,} (--retry-failed tries them again)"))
    if plan.left_out:
        rows.append(("left out", _counted(plan.left_out)))
    if plan.prunable:
        rows.append(("gone", f"{plan.prunable:,} recordings, which --prune will remove"))
    if not plan.listing_ended:
        rows.append(("note", "--limit was reached; the rest of the source was not listed"))
    if not brief:
        rows.insert(0, ("listed", f"{plan.listed:,} files"))
        rows.append(
            ("folders", f"{len(plan.parts):,}, {_plural(sum(plan.parts.values()), 'part')}")
        )
    print_facts(console, "", rows)
    if plan.unmatched:
        console.print(
            Text(
                f"note: {plan.unmatched:,} recordings do not match --folder; they go to _root",
                style="yellow",
            )
        )
    for name, (one, other) in list(plan.same_name.items())[:3]:
        console.print(
            Text(
                f"note: {one!r} and {other!r} are one folder, {name!r}; "
                "if they are not one speaker, use --folder path",
                style="yellow",
            )
        )


def print_report(console: Console, report: BuildReport) -> None:
    """Print what a build did."""
    if not (report.recordings or report.pruned or report.stopped):
        failed = f", {report.failed_before:,} failed before" if report.failed_before else ""
        console.print(
            f"nothing to do: {report.already_done:,} recordings are done{failed} "
            f"({format_duration(report.wall_s)}); {report.sink}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return
    rate = f"{1 / report.real_time_factor:.1f} × real time" if report.real_time_factor else "–"
    rows = [
        ("rows", f"{report.rows:,}"),
        ("audio", format_duration(report.audio_s)),
        ("wall time", f"{format_duration(report.wall_s)} (planning {report.plan_s:.1f} s)"),
        ("real-time factor", f"{report.real_time_factor:.3f} ({rate})"),
        (
            "seconds a recording",
            (
                f"mean {report.seconds_mean:.3f}, p50 {report.seconds_p50:.3f}, "
                f"p95 {report.seconds_p95:.3f}"
            ),
        ),
        (
            "by stage, all threads",
            ", ".join(f"{k.removesuffix('_s')} {v:.1f} s" for k, v in report.stages_s.items()),
        ),
        ("already done", f"{report.already_done:,}"),
    ]
    if report.gone:
        rows.append(("gone meanwhile", f"{report.gone:,}"))
    if report.pruned:
        rows.append(("pruned", f"{report.pruned:,}"))
    if differing := {name: rate for name, rate in report.token_mismatch.items() if rate}:
        shares = ", ".join(f"{name} {rate:.4%} of codes" for name, rate in differing.items())
        rows.append(("differ if made anew", f"{shares}: speechmill tokens verify {report.sink}"))
    errors = f" ({_counted(report.errors)})" if report.errors else ""
    if report.failed or report.failed_before:
        rows.append(
            (
                "failed",
                (
                    f"{report.failed:,} now{errors}, {report.failed_before:,} before: "
                    f"speechmill failures {report.sink}"
                ),
            )
        )
    else:
        rows.append(("failed", "0"))
    rows += [("dataset", f"{report.sink}/data"), ("run", report.run_id)]
    print_facts(console, "", rows)


def print_summary(
    console: Console,
    url: str,
    state: Mapping[str, str],
    recipe: Recipe | None,
    summary: Summary,
) -> None:
    """Print what is in a sink."""
    choices = recipe.choices if recipe else {}
    tokenizers = [t["name"] for t in choices.get("tokenizers", {}).values()]
    details = {**(recipe.made_by if recipe else {}), **choices.get("transcriber", {})}
    details["model"] = recipe.made_by.get("model", "") if recipe else ""
    keys = ("transcriber", "model", "compute_type")
    made_by = " ".join(str(details[k]) for k in keys if details.get(k))
    rows = [
        ("rows", f"{summary.rows:,} ({summary.empty:,} without speech)"),
        ("audio", format_duration(summary.audio_s)),
        ("parts", f"{summary.parts:,}, {format_bytes(summary.num_bytes)}"),
        ("source", state["source"]),
        ("made by", f"{made_by}; tokens: {', '.join(tokenizers) or 'none'}"),
        ("recipe", state["recipe"]),
        ("failures", _counted(summary.failures) or "0"),
        ("languages", _counted(dict(summary.languages.most_common(MOST)))),
        ("flags", _counted(dict(summary.flags.most_common(MOST))) or "none"),
    ]
    others = {name: count for name, count in summary.recipes.items() if name != state["recipe"]}
    if others:
        rows.append(("other recipes", f"{_counted(others)} (--rebuild replaces them)"))
    print_facts(console, url, rows)
    folders = Table(
        "folder", "rows", "minutes", title=_plural(len(summary.folders), "folder"), box=None
    )
    for name, count in summary.folders.most_common(MOST):
        folders.add_row(Text(name), f"{count:,}", f"{summary.folder_audio_s[name] / MINUTE:,.1f}")
    console.print(folders)
    if len(summary.folders) > MOST:
        console.print(f" … and {len(summary.folders) - MOST:,} more")
    slowest = Table("seconds", "recording", title="slowest recordings", box=None)
    for seconds, name in summary.slowest:
        slowest.add_row(f"{seconds:.2f}", Text(name))
    console.print(slowest)


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    """Print what the doctor found."""
    checks = list(checks)
    width = max(len(check.what) for check in checks)
    for check in checks:
        mark = ("ok", "green") if check.good else ("no", "bold red")
        line = Text.assemble(mark, "  ", (check.what.ljust(width), "bold"), "  ", check.finding)
        console.print(line, soft_wrap=True)
