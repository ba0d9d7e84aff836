"""The command ``measure``: columns that say which rows to trust."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from speechmill.cli.console import err, out
from speechmill.cli.enrich import (
    SingleWriterFlag,
    Source,
    SourceStorage,
    elsewhere,
    open_writable,
)
from speechmill.cli.exits import leave, resumable
from speechmill.cli.options import Storage, with_flags
from speechmill.errors import JobError
from speechmill.job import EngineOptions

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
    storage: Storage,
    source: Source = None,
    source_storage: SourceStorage,
    single_writer: SingleWriterFlag = False,
    engine: EngineOptions,
) -> None:
    """Measure those rows of SINK that are not measured yet, in columns of their own.

    Each recording is fetched once for all measures. Readers see nothing of a part's values until
    all of them are made. The same command again goes on where it was cut short, and measures what
    has come since. `speechmill measure list` says what there is. Exit codes: 0 every row is
    measured, 1 could not run, 2 wrong usage, 3 done but some rows could not be measured (their
    recordings are gone, changed or failed), 130 or 143 stopped by a signal.
    """
    from speechmill.cli.views.tokens import AddDisplay, print_added
    from speechmill.enrich.add import measure as run

    if not names:
        if sink != "list":
            raise JobError(
                f"say what is to be measured: speechmill measure {sink} level; speechmill measure "
                "list shows what there is"
            )
        from speechmill.cli.views.measure import print_measures

        print_measures(out)
        return
    store = open_writable(storage, sink, single_writer=single_writer)
    with resumable() as stop, closing(AddDisplay(err)) as display:
        report = run(
            store,
            names,
            remake=remake,
            source_url=source,
            source_options=source_storage.options(storage),
            elsewhere=elsewhere(store, storage, source_storage, engine),
            observer=display,
            stop=stop,
        )
    print_added(out, report)
    leave(report.complete, stop)
