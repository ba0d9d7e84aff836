"""What a user sees of a build: its progress, and what came of it."""

from __future__ import annotations

from rich.console import Console

from speechmill.builder import Observer
from speechmill.cli.views.facts import HOUR, format_counts, format_duration, print_facts
from speechmill.cli.views.plan import PlanDisplay
from speechmill.pipeline.planner import Plan
from speechmill.pipeline.report import BuildReport, Tally

__all__ = ["BuildDisplay", "print_report"]


class BuildDisplay(PlanDisplay, Observer):
    """The display of a build."""

    def _size(self, plan: Plan) -> int:
        return plan.num_bytes

    def progress(self, tally: Tally) -> None:
        """See ``Observer``."""
        done = (
            f"{tally.recordings:,}/{self._recordings:,} recordings  "
            f"{tally.audio_s / HOUR:.2f} h audio  "
            f"{tally.audio_s / self.elapsed_s:.1f} × real time"
        )
        self.show(tally.num_bytes, done, f"{tally.failed} failed" if tally.failed else "")


def print_report(console: Console, report: BuildReport) -> None:
    """Print what a build did."""
    if not (report.recordings or report.pruned or report.stopped):
        failed = f", {report.failed_before:,} failed before" if report.failed_before else ""
        console.print(
            f"nothing to do: {report.already_done:,} recordings are done{failed} "
            f"({format_duration(report.wall_s)}); {report.sink}",
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
            f"mean {report.seconds_mean:.3f}, p50 {report.seconds_p50:.3f}, "
            f"p95 {report.seconds_p95:.3f}",
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
    failed = "0"
    if report.failed or report.failed_before:
        errors = f" ({format_counts(report.errors)})" if report.errors else ""
        before = f"{report.failed_before:,} before: speechmill failures {report.sink}"
        failed = f"{report.failed:,} now{errors}, {before}"
    rows += [("failed", failed), ("dataset", f"{report.sink}/data"), ("run", report.run_id)]
    print_facts(console, "", rows)
