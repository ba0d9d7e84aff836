"""What a user sees of a plan: while it is made, and once it is."""

from __future__ import annotations

from rich.console import Console
from rich.status import Status
from rich.text import Text

from speechmill.cli.views.facts import format_bytes, format_counts, format_plural, print_facts
from speechmill.cli.views.progress import ProgressDisplay
from speechmill.pipeline.planner import Plan

__all__ = ["PlanDisplay", "print_plan"]

SAME_NAME_SHOWN = 3


class PlanDisplay(ProgressDisplay):
    """The display of work that is planned first."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._status: Status | None = None
        self._recordings = 0

    def listed(self, count: int) -> None:
        """So many objects of the source have been listed; 0 when planning begins."""
        text = f"planning: {count:,} files listed" if count else "planning: listing the source"
        if self._console.is_terminal:
            self._status = self._status or self._console.status(text)
            self._status.update(text)
            self._status.start()
        else:
            self.say_now_and_then(text)

    def planned(self, plan: Plan) -> None:
        """The plan is made; the work begins."""
        if self._status:
            self._status.stop()
        print_plan(self._console, plan, brief=True)
        self._recordings = plan.num_recordings
        self.begin(self._size(plan))

    def _size(self, plan: Plan) -> int:
        """How much there is to do, as progress counts it."""
        return plan.num_recordings

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._status:
            self._status.stop()
        self._status = None
        super().close()


def print_plan(console: Console, plan: Plan, *, brief: bool = False) -> None:
    """Print what is to be done."""
    again = f", {plan.again:,} again" if plan.again else ""
    to_do = f"{plan.num_recordings:,} ({plan.new:,} new, {plan.changed:,} changed{again})"
    rows = [
        (
            "to do",
            f"{to_do}, {format_bytes(plan.num_bytes)}, "
            f"in {format_plural(len(plan.shards), 'shard')}",
        ),
        ("already done", f"{plan.done:,}"),
    ]
    if plan.elsewhere:
        rows.append(("elsewhere", f"{plan.elsewhere:,} in the parts of other shard indices"))
    if plan.failed:
        rows.append(("failed before", f"{plan.failed:,} (--retry-failed tries them again)"))
    if plan.left_out:
        rows.append(("left out", format_counts(plan.left_out)))
    if plan.prunable:
        rows.append(("gone", f"{plan.prunable:,} recordings, which --prune will remove"))
    if not plan.listing_ended:
        rows.append(("note", "--limit was reached; the rest of the source was not listed"))
    if not brief:
        rows.insert(0, ("listed", f"{plan.listed:,} files"))
        rows.append(
            ("folders", f"{len(plan.parts):,}, {format_plural(sum(plan.parts.values()), 'part')}")
        )
    print_facts(console, "", rows)
    notes = [
        f"note: {one!r} and {other!r} are one folder, {name!r}; "
        "if they are not one speaker, use --folder path"
        for name, (one, other) in list(plan.same_name.items())[:SAME_NAME_SHOWN]
    ]
    if plan.unmatched:
        unmatched = f"note: {plan.unmatched:,} recordings do not match --folder; they go to _root"
        notes.insert(0, unmatched)
    for note in notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
