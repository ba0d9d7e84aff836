"""The command ``measure``: columns that say which rows to trust."""

from __future__ import annotations

from typing import Annotated

import typer

from speechmill.cli.console import out
from speechmill.cli.enrich import Enriching
from speechmill.cli.options import with_flags
from speechmill.errors import JobError

__all__ = ["measure"]


@with_flags
def measure(
    sink: Annotated[
        str,
        typer.Argument(
            metavar="SINK", help="The dataset: s3://…, a folder; or list, to see what there is."
        ),
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME…", help="Measures, such as level.")
    ] = None,
    *,
    remake: Annotated[
        bool,
        typer.Option("--remake", help="Measure all rows again that have another version of it."),
    ] = False,
    enriching: Enriching,
) -> None:
    """Measure those rows of SINK that are not measured yet, in columns of their own.

    Each recording is fetched once for all measures. Readers see nothing of a part's values until
    all of them are made. The same command again goes on where it was cut short, and measures what
    has come since. `speechmill measure list` says what there is. Exit codes: 0 every row is
    measured, 1 could not run, 2 wrong usage, 3 done but some rows could not be measured (their
    recordings are gone, changed or failed), 130 or 143 stopped by a signal.
    """
    if not names:
        if sink != "list":
            raise JobError(
                f"say what is to be measured: speechmill measure {sink} level; speechmill measure "
                "list shows what there is"
            )
        from speechmill.cli.views.measure import print_measures

        print_measures(out)
        return
    from speechmill.enrich.add import measure as run

    enriching.run(run, sink, names, remake=remake)
