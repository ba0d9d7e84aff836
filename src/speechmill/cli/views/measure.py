"""What a user sees of the measures that there are."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from speechmill.measures import MEASURES

__all__ = ["print_measures"]


def print_measures(console: Console) -> None:
    """Print each measure: its columns, what it looks at, and how it measures."""
    table = Table("measure", "columns", "looks at", "how", box=None, show_edge=False)
    for name, opened in MEASURES.items():
        if name == "fake":  # for tests
            continue
        one = opened()
        looks_at = ["audio"] if one.needs.audio else []
        columns = ", ".join(field.name for field in one.fields)
        table.add_row(name, columns, ", ".join([*looks_at, *one.needs.columns]), one.source)
    console.print(table)
