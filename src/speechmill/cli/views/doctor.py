"""What a user sees of ``doctor``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from speechmill.cli.checks import Check

__all__ = ["print_checks"]


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    """Print what the doctor found."""
    checks = list(checks)
    width = max(len(check.what) for check in checks)
    for check in checks:
        mark = ("ok", "green") if check.good else ("no", "bold red")
        line = Text.assemble(mark, "  ", (check.what.ljust(width), "bold"), "  ", check.finding)
        console.print(line, soft_wrap=True)
