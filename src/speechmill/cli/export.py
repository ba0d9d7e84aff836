"""The commands that publish a dataset in other layouts: ``export`` and a format."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from speechmill.cli.console import err, print_fields
from speechmill.cli.exits import leave
from speechmill.cli.options import Destination, OutStorage, ReadStorage, Sink, with_flags

__all__ = ["export_app"]

export_app = typer.Typer(no_args_is_help=True, help="Publish the rows in other layouts.")


@export_app.command(
    "parquet", epilog="Example: `speechmill export parquet s3://voices/output ./plain`"
)
@with_flags
def export_parquet(
    sink: Sink,
    destination: Destination,
    *,
    template: Annotated[
        str, typer.Option(help="Each file's path below OUT.")
    ] = "{folder_name}/data.parquet",
    storage: ReadStorage,
    out_storage: OutStorage,
) -> None:
    """Publish the rows as plain Parquet files, one a folder."""
    from speechmill.export.parquet import export_parquet as run

    source, target = storage.open(sink), out_storage.open(destination, otherwise=storage)
    rows = 0
    written: set[str] = set()
    for exported in run(source, target, template):
        written.add(exported.key)
        rows += exported.rows
        print_fields(f"{target.url}/{exported.key}", f"{exported.rows} rows")
    err.print(f"{rows} rows in {len(written)} files")
    others = [o.key for o in target.list() if o.key.endswith(".parquet") and o.key not in written]
    if others and target.url != source.url:
        err.print(
            Text(f"note: {target.url} also holds {len(others)} files that are not of this export, ")
            + Text(f"such as {others[0]}", style="yellow")
        )
    leave(True)
