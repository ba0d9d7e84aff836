"""What a user sees of a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speechmill.cli.console import visible
from speechmill.cli.views.facts import (
    MINUTE,
    format_bytes,
    format_counts,
    format_duration,
    format_plural,
    print_facts,
)
from speechmill.dataset.summary import Summary
from speechmill.recipe import Recipe

__all__ = ["print_summary"]

MOST = 12  # folders, languages and flags that a summary names


def print_summary(
    console: Console, url: str, state: Mapping[str, str], recipe: Recipe | None, summary: Summary
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
        ("failures", format_counts(summary.failures) or "0"),
        ("languages", format_counts(dict(summary.languages.most_common(MOST)))),
        ("flags", format_counts(dict(summary.flags.most_common(MOST))) or "none"),
    ]
    others = {name: count for name, count in summary.recipes.items() if name != state["recipe"]}
    if others:
        rows.append(("other recipes", f"{format_counts(others)} (--rebuild replaces them)"))
    print_facts(console, url, rows)
    folders = Table(
        "folder", "rows", "minutes", title=format_plural(len(summary.folders), "folder"), box=None
    )
    for name, count in summary.folders.most_common(MOST):
        folders.add_row(
            Text(visible(name)), f"{count:,}", f"{summary.folder_audio_s[name] / MINUTE:,.1f}"
        )
    console.print(folders)
    if len(summary.folders) > MOST:
        console.print(f" … and {len(summary.folders) - MOST:,} more")
    slowest = Table("seconds", "recording", title="slowest recordings", box=None)
    for seconds, name in summary.slowest:
        slowest.add_row(f"{seconds:.2f}", Text(visible(name)))
    console.print(slowest)
