"""The command line: flags and a TOML file become a ``Job``; one call down does the work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from speechmill._version import __version__
from speechmill.cli.options import (
    EndpointUrl,
    OutEndpointUrl,
    OutProfile,
    Profile,
    Region,
    Sink,
    with_flags,
)
from speechmill.cli.queues import (
    ENQUEUE_EPILOG,
    WORK_EPILOG,
    dead_letters_app,
    enqueue_command,
    work_command,
)
from speechmill.cli.repartition import REPARTITION_EPILOG, repartition
from speechmill.cli.signals import GOES_ON, Stop
from speechmill.cli.tokens import DECODE_EPILOG, decode, tokens_app
from speechmill.cli.units import units_app
from speechmill.errors import DatasetError, JobError, SpeechmillError, UnavailableError
from speechmill.job import Job, load_job

if TYPE_CHECKING:
    from speechmill.storage import Store

__all__ = ["app", "main"]

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
ONE_LINE = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})

app = typer.Typer(
    name="speechmill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A bucket of recorded speech goes in, a training-ready Parquet dataset comes out.",
    epilog="Example: `speechmill build ./corpus ./out --model base --language en`",
)
export_app = typer.Typer(no_args_is_help=True, help="Publish the rows in other layouts.")
app.add_typer(
    export_app, name="export", epilog="Example: `speechmill export parquet ./out ./plain`"
)
app.add_typer(
    tokens_app,
    name="tokens",
    epilog="Example: `speechmill tokens add s3://voices/output --tokenizer mimi`",
)
app.add_typer(
    units_app,
    name="units",
    epilog="Example: `speechmill units fit s3://voices/vctk --features whisper --clusters 500`",
)

out = Console()
err = Console(stderr=True)


def _takes_a_job(command: Callable[[Job], None]) -> Callable[..., None]:
    """Give a command SOURCE, SINK, --config and a flag for every other field of ``Job``."""

    def run(config: Path | None, given: dict[str, Any]) -> None:
        command(load_job(config, given))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    places = ("source", "sink")
    flags = [(Job, name) for name in Job.model_fields if name not in places]
    return with_flags(run, [(Job, name) for name in places], flags)


@app.command(epilog="Example: `speechmill build s3://voices/vctk s3://voices/output --profile r2`")
@_takes_a_job
def build(job: Job) -> None:
    """Build the dataset: transcribe and tokenize what SINK lacks of SOURCE.

    The same command again goes on where it was cut short, and finds what is new or has changed.
    Exit codes: 0 all done, 1 could not run, 2 wrong usage, 3 done but some recordings failed,
    130 or 143 stopped by a signal.
    """
    stop = Stop(err)
    with stop.listening():
        try:
            from speechmill.builder import build as run
            from speechmill.cli.views.build import BuildDisplay, print_report

            display = BuildDisplay(err)
            try:
                report = run(job, observer=display, stop=stop)
            finally:
                display.close()
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}\nonce the store answers again, the same command goes on from here"
            ) from None
    print_report(out, report)
    if stop():
        err.print(GOES_ON)
        _leave(stop.exit_code)
    _leave(EXIT_OK if report.complete else EXIT_SOME_FAILED)


@app.command(epilog="Example: `speechmill plan s3://voices/vctk s3://voices/output --profile r2`")
@_takes_a_job
def plan(job: Job) -> None:
    """Show what a build would do: recordings, bytes, shards, already done. Writes nothing."""
    from speechmill.builder import plan as make
    from speechmill.cli.views.build import print_plan

    print_plan(out, make(job))


def _sink_state(store: Store) -> dict[str, Any]:
    """What the sink's builds have agreed on; an error where there is no dataset."""
    from speechmill.dataset.state import read_state

    state = read_state(store)
    if state is None:
        raise DatasetError(f"there is no dataset in {store.url}; speechmill build makes one")
    return state


@app.command(epilog="Example: `speechmill show s3://voices/output --profile r2`")
def show(
    sink: Sink,
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
) -> None:
    """Show what SINK holds: rows, hours, folders, languages, failures, what made them."""
    from speechmill.cli.views.build import print_summary
    from speechmill.dataset.state import read_recipe
    from speechmill.dataset.summary import summarize
    from speechmill.storage import StoreOptions, open_store

    store = open_store(sink, StoreOptions(profile, endpoint_url, region))
    state = _sink_state(store)
    print_summary(out, store.url, state, read_recipe(store, state["recipe"]), summarize(store))


@app.command(epilog="Example: `speechmill failures s3://voices/output --profile r2`")
def failures(
    sink: Sink,
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
) -> None:
    """List the recordings of SINK that failed, and why: path, stage, reason, attempts; by tabs."""
    from speechmill.dataset.summary import failed_recordings
    from speechmill.storage import StoreOptions, open_store

    store = open_store(sink, StoreOptions(profile, endpoint_url, region))
    _sink_state(store)
    failed = failed_recordings(store)
    for row in failed:
        reason = f"{row.error}: {row.message}"
        fields = (row.file_name, row.stage, reason, str(row.attempts))
        typer.echo("\t".join(f.translate(ONE_LINE) for f in fields))
    err.print(f"{len(failed)} failed" if failed else "no failures")


@export_app.command(
    "parquet", epilog="Example: `speechmill export parquet s3://voices/output ./plain`"
)
def export_parquet(
    sink: Sink,
    destination: Annotated[str, typer.Argument(metavar="OUT", help="Where the files go.")],
    template: Annotated[
        str, typer.Option(help="Each file's path below OUT.")
    ] = "{folder_name}/data.parquet",
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    out_profile: OutProfile = None,
    out_endpoint_url: OutEndpointUrl = None,
) -> None:
    """Publish the rows as plain Parquet files, one a folder."""
    from speechmill.export.parquet import export_parquet as run
    from speechmill.storage import StoreOptions, open_store

    source = open_store(sink, StoreOptions(profile, endpoint_url, region))
    target = open_store(
        destination,
        StoreOptions(out_profile or profile, out_endpoint_url or endpoint_url, region),
    )
    rows = 0
    written: set[str] = set()
    for exported in run(source, target, template):
        written.add(exported.key)
        rows += exported.rows
        typer.echo(f"{target.url}/{exported.key}\t{exported.rows} rows")
    err.print(f"{rows} rows in {len(written)} files")
    others = [o.key for o in target.list() if o.key.endswith(".parquet") and o.key not in written]
    if others and target.url != source.url:
        err.print(
            Text(f"note: {target.url} also holds {len(others)} files that are not of this export, ")
            + Text(f"such as {others[0]}", style="yellow")
        )


app.command("enqueue", epilog=ENQUEUE_EPILOG)(enqueue_command)
app.command("work", epilog=WORK_EPILOG)(work_command)
app.add_typer(
    dead_letters_app,
    name="dead-letters",
    epilog="Example: `speechmill dead-letters list kafka://broker:9092/recordings`",
)
app.command(epilog=DECODE_EPILOG)(decode)
app.command(epilog=REPARTITION_EPILOG)(repartition)


@app.command(epilog="Example: `speechmill doctor s3://voices/vctk s3://voices/output --profile r2`")
def doctor(
    source: Annotated[str | None, typer.Argument(help="A source to list and read.")] = None,
    sink: Annotated[str | None, typer.Argument(help="A sink to write to.")] = None,
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    sink_profile: Annotated[
        str | None, typer.Option(help="Profile of SINK, where it differs from SOURCE's.")
    ] = None,
    sink_endpoint_url: Annotated[
        str | None, typer.Option(help="Endpoint of SINK, where it differs from SOURCE's.")
    ] = None,
    sink_region: Annotated[
        str | None, typer.Option(help="Region of SINK, where it differs from SOURCE's.")
    ] = None,
    model: Annotated[str, typer.Option(help="Whisper model to look for.")] = "base",
) -> None:
    """Check what is there: devices, models, extras; and whether SOURCE and SINK can be used."""
    from speechmill.cli.doctor import examine
    from speechmill.cli.views.build import print_checks
    from speechmill.storage import StoreOptions

    checks = examine(
        source,
        sink,
        StoreOptions(profile, endpoint_url, region),
        StoreOptions(
            sink_profile or profile, sink_endpoint_url or endpoint_url, sink_region or region
        ),
        model,
    )
    print_checks(out, checks)
    _leave(EXIT_OK if all(c.good for c in checks) else EXIT_FAILED)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"speechmill {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code)


def _exit(code: int) -> NoReturn:
    """End at once: threads that wait for a store that is down are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """The command ``speechmill``: errors become one message and an exit code."""
    try:
        app()
    except SpeechmillError as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=not err.is_terminal)
        _exit(EXIT_USAGE if isinstance(error, JobError) else EXIT_FAILED)
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get("SPEECHMILL_DEBUG"):
            raise
        err.print(
            Text.assemble(
                ("internal error: ", "bold red"),
                f"{type(error).__name__}: {error}\n"
                "This is a defect of Speechmill. SPEECHMILL_DEBUG=1 shows where it happened.",
            )
        )
        _exit(EXIT_FAILED)
