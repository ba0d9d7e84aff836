"""The command ``repartition``: a dataset's rows as new files, grouped by columns."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speechmill.cli.console import err, out, print_fields
from speechmill.cli.exits import leave, resumable
from speechmill.cli.options import Differing, ReadStorage, Sink, Storage, with_flags

if TYPE_CHECKING:
    from speechmill.export.repartition import RunUnits

__all__ = ["repartition"]


@dataclass(frozen=True, slots=True)
class Writers:
    """Who writes the files."""

    engine: Annotated[
        Literal["local", "dask"],
        typer.Option(help="What writes the files: threads of this process, or Dask."),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            help="A Dask cluster that runs: tcp://scheduler:8786, or auto [default: --workers "
            "processes on this machine]."
        ),
    ] = None
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="With Dask: processes on this machine (0: one a core); on a cluster, how much it "
            "does at the same time at most (0: a thread each).",
        ),
    ] = 0

    def start(self) -> RunUnits:
        """Connect to them."""
        if self.engine == "dask":
            from speechmill.export.dask import on_dask

            return on_dask(address=self.address, workers=self.workers)
        if self.address or self.workers:
            raise typer.BadParameter("--address and --workers are for --engine dask")
        from speechmill.export.files import in_threads

        return in_threads


@with_flags
def repartition(
    sink: Sink,
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT",
            help="Where the new files go; an empty place. Without it, folders of SINK that have "
            "outgrown their parts get more of them, also while workers and builds run.",
        ),
    ] = None,
    *,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns to group by, such as language,folder_name; a directory level each."
        ),
    ] = None,
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Rows of a file; the last one of a group may have fewer.")
    ] = 10_000,
    storage: ReadStorage,
    out_storage: Annotated[Storage, Differing("out", "OUT", "SINK")],
    writers: Writers,
    part_minutes: Annotated[
        float, typer.Option(min=0.001, help="Without OUT: minutes of audio that a part is to hold.")
    ] = 30.0,
) -> None:
    """Write the rows of SINK into OUT/data anew, grouped by columns, so many rows a file.

    SINK stays as it is. The same command again goes on where it was cut short. Without OUT and
    --by, the folders of SINK that have outgrown their parts get more of them, for what is new: rows
    never move, so nobody needs to pause. Exit codes: 0 all done, 1 could not run, 2 wrong usage,
    130 or 143 stopped by a signal.
    """
    if destination is None:
        if by:
            raise typer.BadParameter("--by needs OUT: where the new files go")
        _grow(sink, storage, part_minutes)
        return
    if not by:
        raise typer.BadParameter("--by is missing: the columns to group by")
    from speechmill.cli.views.repartition import RepartitionDisplay, print_repartitioned
    from speechmill.export.files import Place
    from speechmill.export.repartition import repartition as run

    run_units = writers.start()
    with resumable() as stop, closing(RepartitionDisplay(err)) as display:
        report = run(
            Place(sink, storage.options()),
            Place(destination, out_storage.options(storage)),
            [name.strip() for names in by for name in names.split(",") if name.strip()],
            run=run_units,
            rows_per_file=rows_per_file,
            observer=display,
            stop=stop,
        )
    if report.stopped:
        leave(False, stop, so_far=f"{report.rows:,} rows were written")
    print_repartitioned(out, report)
    leave(True)


def _grow(sink: str, storage: Storage, part_minutes: float) -> None:
    """Give folders more parts, and say which."""
    from speechmill.dataset.growth import grow, outgrown
    from speechmill.dataset.reader import stored_schema
    from speechmill.dataset.state import sink_state

    store = storage.open(sink)
    sink_state(store)
    schema = stored_schema(store)
    folders = outgrown(store, 60 * part_minutes)
    for name, count in sorted(folders.items()):
        if schema is not None:
            now = grow(store, name, count, schema).folders[name]
            print_fields(name, f"{count} → {now} parts")
    err.print(f"{len(folders):,} folders have more parts now")
    leave(True)
