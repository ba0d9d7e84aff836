"""What a user sees of ``units fit``."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from speechmill.cli.console import visible
from speechmill.cli.views.facts import HOUR, format_duration, print_facts
from speechmill.cli.views.progress import ProgressDisplay
from speechmill.units.cluster import Quality
from speechmill.units.fit import FitObserver, FitReport

__all__ = ["FitDisplay", "print_fit"]

SHOWN = 10  # skipped recordings that are named


class FitDisplay(ProgressDisplay, FitObserver):
    """The display of a fit."""

    def listed(self, count: int) -> None:
        """See ``FitObserver``."""
        if not self._console.is_terminal:
            self.say_now_and_then(f"{count:,} files listed")

    def heard(self, audio_s: float, target_s: float, recordings: int, skipped: int) -> None:
        """See ``FitObserver``."""
        if not self._total:
            self.begin(target_s)
        done = (
            f"{audio_s / HOUR:.2f} of {target_s / HOUR:.2f} h  {recordings:,} recordings  "
            f"{audio_s / self.elapsed_s:.1f} × real time"
        )
        self.show(audio_s, done, f"{skipped:,} skipped" if skipped else "")

    def clustering(self, frames: int, clusters: int) -> None:
        """See ``FitObserver``."""
        self.close()
        self.say(f"clustering {frames:,} frames into {clusters:,} units")


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
        console.print(
            Text.assemble(("skipped  ", "yellow"), f"{visible(name)}: {reason}"), soft_wrap=True
        )
    if len(report.skipped) > SHOWN:
        console.print(f"… and {len(report.skipped) - SHOWN:,} more")


def _quality(quality: Quality, clusters: int) -> str:
    return (
        f"{quality.frames:,} frames: inertia {quality.inertia:.4g} a frame, "
        f"{quality.used:,} of {clusters:,} units used, perplexity {quality.perplexity:,.1f}"
    )
