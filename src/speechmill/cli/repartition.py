"""The command ``repartition``: a dataset's rows as new files, grouped by columns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from speechmill.cli.options import EndpointUrl, OutEndpointUrl, OutProfile, Profile, Region, Sink
from speechmill.cli.signals import GOES_ON, Stop

if TYPE_CHECKING:
    from rich.progress import Progress

    from speechmill.export.repartition import RepartitionReport, RunUnits
    from speechmill.storage import StoreOptions

__all__ = ["REPARTITION_EPILOG", "repartition"]

REPARTITION_EPILOG = (
    "Example: `speechmill repartition s3://voices/output ./by-language "
    "--by language,folder_name --rows-per-file 10000`"
)

out = Console()
err = Console(stderr=True)


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
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns to group by, such as language,folder_name; a directory level each."
        ),
    ] = None,
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Rows of a file; the last one of a group may have fewer.")
    ] = 10_000,
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    out_profile: OutProfile = None,
    out_endpoint_url: OutEndpointUrl = None,
    out_region: Annotated[
        str | None, typer.Option(help="Region of OUT, where it differs from SINK's.")
    ] = None,
    engine: Annotated[
        Literal["local", "dask"],
        typer.Option(help="What writes the files: threads of this process, or Dask."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="A Dask cluster that runs: tcp://scheduler:8786, or auto [default: --workers "
            "processes on this machine]."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="With Dask: processes on this machine (0: one a core); on a cluster, how much it "
            "does at the same time at most (0: a thread each).",
        ),
    ] = 0,
    part_minutes: Annotated[
        float,
        typer.Option(min=0.001, help="Without OUT: minutes of audio that a part is to hold."),
    ] = 30.0,
) -> None:
    """Write the rows of SINK into OUT/data anew, grouped by columns, so many rows a file.

    SINK stays as it is. The same command again goes on where it was cut short. Without OUT and
    --by, the folders of SINK that have outgrown their parts get more of them, for what is new: rows
    never move, so nobody needs to pause. Exit codes: 0 all done, 1 could not run, 2 wrong usage,
    130 or 143 stopped by a signal.
    """
    from speechmill.storage import StoreOptions

    if destination is None:
        if by:
            raise typer.BadParameter("--by needs OUT: where the new files go")
        _grow(sink, StoreOptions(profile, endpoint_url, region), part_minutes)
        return
    if not by:
        raise typer.BadParameter("--by is missing: the columns to group by")
    from speechmill.export.files import Place, in_threads
    from speechmill.export.repartition import repartition as run

    if engine == "local" and (address or workers):
        raise typer.BadParameter("--address and --workers are for --engine dask")
    run_units = in_threads if engine == "local" else _on_dask(address, workers)
    stop, display = Stop(err), _Display()
    with stop.listening():
        try:
            report = run(
                Place(sink, StoreOptions(profile, endpoint_url, region)),
                Place(
                    destination,
                    StoreOptions(
                        out_profile or profile,
                        out_endpoint_url or endpoint_url,
                        out_region or region,
                    ),
                ),
                [name.strip() for names in by for name in names.split(",") if name.strip()],
                run=run_units,
                rows_per_file=rows_per_file,
                observer=display,
                stop=stop,
            )
        finally:
            display.close()
    if report.stopped:
        err.print(f"{report.rows:,} rows were written; {GOES_ON}", highlight=False)
        raise typer.Exit(stop.exit_code)
    _print(report)


def _grow(sink: str, options: StoreOptions, part_minutes: float) -> None:
    """Give folders more parts, and say which."""
    from speechmill.dataset.growth import grow, outgrown
    from speechmill.dataset.reader import stored_schema
    from speechmill.dataset.state import sink_state
    from speechmill.storage import open_store

    store = open_store(sink, options)
    sink_state(store)
    schema = stored_schema(store)
    folders = outgrown(store, 60 * part_minutes)
    for name, count in sorted(folders.items()):
        if schema is not None:
            now = grow(store, name, count, schema).folders[name]
            typer.echo(f"{name}\t{count} → {now} parts")
    err.print(f"{len(folders):,} folders have more parts now", highlight=False)


def _on_dask(address: str | None, workers: int) -> RunUnits:
    from speechmill.export.dask import on_dask

    return on_dask(address=address, workers=workers)


class _Display:
    """Rows that get written: a bar on a terminal, a plain line now and then in a pipe."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._started = self._said = time.monotonic()
        self._total = 0

    def planned(self, rows: int, files: int, resumed: int) -> None:
        """So many rows and files are to be written; ``resumed`` files are there already."""
        there = f"; {resumed:,} files are there from before" if resumed else ""
        err.print(f"to do: {rows:,} rows in {files:,} files{there}", highlight=False)
        self._started = self._said = time.monotonic()
        self._total = rows
        if rows and err.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=err,
                transient=True,
            )
            self._task = self._progress.add_task("rows", total=rows)
            self._progress.start()

    def progress(self, rows: int) -> None:
        """So many rows are written."""
        from speechmill.cli.views.build import PLAIN_EVERY_S

        now = time.monotonic()
        if self._progress:
            self._progress.update(self._task, completed=rows)
        elif rows and now - self._said >= PLAIN_EVERY_S:
            self._said = now
            rate = rows / (now - self._started)
            err.print(
                f"{rows:,}/{self._total:,} rows  {rate:,.1f} rows/s  "
                f"{(self._total - rows) / rate:,.0f} s left",
                highlight=False,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()


def _print(report: RepartitionReport) -> None:
    from speechmill.cli.views.build import format_duration, print_facts

    facts = [
        ("groups", f"{report.partitions:,}"),
        ("files written", f"{report.files:,} ({report.rows:,} rows)"),
    ]
    if report.resumed:
        facts.append(("there already", f"{report.resumed:,} files"))
    facts += [("wall time", format_duration(report.wall_s)), ("dataset", report.out)]
    print_facts(out, "", facts)
