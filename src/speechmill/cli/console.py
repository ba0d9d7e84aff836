"""The two streams of a terminal that commands write to."""

from __future__ import annotations

import typer
from rich.console import Console

__all__ = ["err", "out", "print_fields"]

out = Console()
err = Console(stderr=True)

ESCAPED = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})


def print_fields(*fields: str) -> None:
    """Print one line of fields with tabs between them, for other programs to read."""
    typer.echo("\t".join(field.translate(ESCAPED) for field in fields))
