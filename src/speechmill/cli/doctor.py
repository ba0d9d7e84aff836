"""The command ``doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from speechmill.cli.console import out
from speechmill.cli.exits import ExitCode
from speechmill.cli.options import Differing, ReadStorage, Storage, with_flags

__all__ = ["doctor"]


@with_flags
def doctor(
    source: Annotated[str | None, typer.Argument(help="A source to list and read.")] = None,
    sink: Annotated[str | None, typer.Argument(help="A sink to write to.")] = None,
    *,
    storage: ReadStorage,
    sink_storage: Annotated[Storage, Differing("sink", "SINK", "SOURCE")],
    model: Annotated[str, typer.Option(help="Whisper model to look for.")] = "base",
) -> None:
    """Check what is there: devices, models, extras; and whether SOURCE and SINK can be used."""
    from speechmill.cli.checks import examine
    from speechmill.cli.views.doctor import print_checks

    checks = examine(source, sink, storage.options(), sink_storage.options(storage), model)
    print_checks(out, checks)
    raise typer.Exit(ExitCode.DONE if all(c.good for c in checks) else ExitCode.FAILED)
