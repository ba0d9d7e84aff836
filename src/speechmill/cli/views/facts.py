"""Names and values as a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.text import Text

from speechmill.cli.console import visible

__all__ = [
    "HOUR",
    "MINUTE",
    "format_bytes",
    "format_counts",
    "format_duration",
    "format_plural",
    "print_facts",
]

KIB = 1024
MINUTE, HOUR = 60, 3600


def format_bytes(count: int) -> str:
    """12.3 MB and the like (powers of 1,024)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < KIB or unit == "TB":
            break
        size /= KIB
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def format_counts(counts: Mapping[str, int]) -> str:
    """3 empty, 2 hidden and the like."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def format_duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min and the like."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE):02d} s"
    return f"{int(seconds // HOUR):,} h {int(seconds % HOUR // MINUTE):02d} min"


def format_plural(count: int, thing: str) -> str:
    """1 shard, 2 shards and the like."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def print_facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, a line each; nothing is cut or broken, also in a pipe."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in rows:
        console.print(
            Text.assemble((name.ljust(width), "dim"), "  ", visible(value)), soft_wrap=True
        )
