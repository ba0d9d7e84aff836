"""The commands that work on the tokens of a dataset: ``decode``, and ``tokens`` add, stats and
verify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from speechmill.cli.options import EndpointUrl, OutEndpointUrl, OutProfile, Profile, Region, Sink
from speechmill.cli.signals import GOES_ON, Stop
from speechmill.errors import JobError
from speechmill.job import Job

if TYPE_CHECKING:
    from speechmill.cli.views.tokens import RowsDisplay
    from speechmill.storage import Store, StoreOptions

__all__ = ["DECODE_EPILOG", "decode", "tokens_app"]

EXIT_OK, EXIT_FAILED, EXIT_SOME_FAILED = 0, 1, 3

DECODE_EPILOG = (
    "Example: `speechmill decode s3://voices/output ./wav --where \"folder_name = 'p225'\"`"
)

out = Console()
err = Console(stderr=True)

tokens_app = typer.Typer(
    no_args_is_help=True, help="Work on a dataset's tokens: add, look at and verify them."
)

Source = Annotated[
    str | None,
    typer.Option(help="Where the recordings are, if not where the dataset says that they are."),
]
SourceProfile = Annotated[
    str | None, typer.Option(help="Profile of the source, where it differs from SINK's.")
]
SourceEndpointUrl = Annotated[
    str | None, typer.Option(help="Endpoint of the source, where it differs from SINK's.")
]
SourceRegion = Annotated[
    str | None, typer.Option(help="Region of the source, where it differs from SINK's.")
]
Device = Annotated[str, typer.Option(help="Where the tokenizer runs: auto, cpu or cuda.")]
Column = Annotated[
    str | None,
    typer.Option(help="Which tokens, where there are several: token, token_mimi, …"),
]
Model = Annotated[
    str | None,
    typer.Option(help="Where the tokenizer's weights are, if not where they were."),
]


def decode(
    sink: Sink,
    destination: Annotated[str, typer.Argument(metavar="OUT", help="Where the files go.")],
    column: Column = None,
    where: Annotated[
        str | None,
        typer.Option(help="Which rows: \"folder_name = 'p225' AND duration_s < 10\"."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take at most so many of these rows.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    out_profile: OutProfile = None,
    out_endpoint_url: OutEndpointUrl = None,
) -> None:
    """Turn codes back into sound: a WAV file a row of SINK, called as its recording, in OUT.

    A recording of several rows gets a file each, with the span in its name. Exit codes: 0 all
    written or there already, 1 could not run, 2 wrong usage, 3 some rows failed.
    """
    from speechmill.cli.views.tokens import print_decoded
    from speechmill.storage import StoreOptions, open_store
    from speechmill.tokens.wav_files import decode_dataset

    store = open_store(sink, StoreOptions(profile, endpoint_url, region))
    target = open_store(
        destination,
        StoreOptions(out_profile or profile, out_endpoint_url or endpoint_url, region),
    )
    stop, display = Stop(err), _display()
    with stop.listening():
        try:
            report = decode_dataset(
                store,
                target,
                column=column,
                where=where,
                limit=limit,
                overwrite=overwrite,
                model=model,
                device=device,
                observer=display,
                stop=stop,
            )
        finally:
            display.close()
    print_decoded(out, report)
    _leave(stop, report.complete)


@tokens_app.command(
    "add", epilog="Example: `speechmill tokens add s3://voices/output --tokenizer mimi`"
)
def add(
    sink: Sink,
    tokenizer: Annotated[
        str,
        typer.Option(help="What makes the tokens: mfcc, encodec, mimi, …, or NAME:MODEL."),
    ],
    tokenizer_option: Annotated[
        list[str] | None, typer.Option(help="An option of it, such as encodec.bandwidth=3.")
    ] = None,
    device: Device = "auto",
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    source: Source = None,
    source_profile: SourceProfile = None,
    source_endpoint_url: SourceEndpointUrl = None,
    source_region: SourceRegion = None,
    single_writer: Annotated[
        bool,
        typer.Option(
            "--single-writer",
            help="Vouch that nothing else writes to SINK: allows stores without conditional puts.",
        ),
    ] = False,
) -> None:
    """Add a column of tokens to the rows of SINK, without transcribing again.

    Readers see nothing of it until all is made. The same command again goes on where it was cut
    short. Exit codes: 0 every row has them, 1 could not run, 2 wrong usage, 3 done but some rows
    have none (their recordings are gone, changed or failed), 130 or 143 stopped by a signal.
    """
    from speechmill.cli.views.tokens import print_added
    from speechmill.enrich.add import add_tokens

    store, source_options = _stores(
        sink, (profile, endpoint_url, region), (source_profile, source_endpoint_url, source_region)
    )
    if single_writer:
        from speechmill.storage.single import SingleWriter

        store = SingleWriter(store)
    options = _options(tokenizer, tokenizer_option or [])
    stop, display = Stop(err), _display()
    with stop.listening():
        try:
            report = add_tokens(
                store,
                tokenizer,
                options,
                device=device,
                source_url=source,
                source_options=source_options,
                observer=display,
                stop=stop,
            )
        finally:
            display.close()
    print_added(out, report)
    _leave(stop, report.complete)


@tokens_app.command("stats", epilog="Example: `speechmill tokens stats s3://voices/output`")
def stats(
    sink: Sink,
    column: Column = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
) -> None:
    """Show how the tokens of SINK are distributed: rates, use of the codebooks, entropy."""
    from speechmill.cli.views.tokens import print_stats
    from speechmill.storage import StoreOptions, open_store
    from speechmill.tokens.stats import token_stats

    store = open_store(sink, StoreOptions(profile, endpoint_url, region))
    found = token_stats(store, column=column, progress=_display().parts)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
    else:
        print_stats(out, found)


@tokens_app.command(
    "verify", epilog="Example: `speechmill tokens verify s3://voices/output --sample 100`"
)
def verify(
    sink: Sink,
    column: Column = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows to compare, drawn at random.")] = 20,
    seed: Annotated[int, typer.Option(help="Another number draws other rows.")] = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Share of codes that may differ, or largest difference of a feature; "
            "on a GPU some may.",
        ),
    ] = 0.0,
    model: Model = None,
    device: Device = "auto",
    profile: Profile = None,
    endpoint_url: EndpointUrl = None,
    region: Region = None,
    source: Source = None,
    source_profile: SourceProfile = None,
    source_endpoint_url: SourceEndpointUrl = None,
    source_region: SourceRegion = None,
) -> None:
    """Make the tokens of some rows of SINK anew, each row alone, and compare.

    Exit codes: 0 they are the same, 1 they differ by more than --tolerance (or could not run),
    2 wrong usage, 3 some of the rows could not be compared.
    """
    from speechmill.cli.views.tokens import print_verified
    from speechmill.tokens.verify import verify_tokens

    store, source_options = _stores(
        sink, (profile, endpoint_url, region), (source_profile, source_endpoint_url, source_region)
    )
    display = _display()
    try:
        report = verify_tokens(
            store,
            column=column,
            sample=sample,
            seed=seed,
            model=model,
            device=device,
            source_url=source,
            source_options=source_options,
            observer=display,
        )
    finally:
        display.close()
    print_verified(out, report)
    if report.off > tolerance:
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(EXIT_SOME_FAILED if report.lost else EXIT_OK)


def _stores(
    sink: str,
    of_sink: tuple[str | None, str | None, str | None],
    of_source: tuple[str | None, str | None, str | None],
) -> tuple[Store, StoreOptions]:
    """The sink, and how to reach the source; each by profile, endpoint and region."""
    from speechmill.storage import StoreOptions, open_store

    profile, endpoint_url, region = (
        mine or theirs for mine, theirs in zip(of_source, of_sink, strict=True)
    )
    return open_store(sink, StoreOptions(*of_sink)), StoreOptions(profile, endpoint_url, region)


def _options(tokenizer: str, given: list[str]) -> dict[str, Any]:
    """The tokenizer's options, given as NAME.OPTION=VALUE.

    Raises:
        JobError: they are written in another way, or are another tokenizer's.
    """
    # As a job reads them.
    parsed = Job(source="-", sink="-", tokenizer_option=given).tokenizer_option
    name = tokenizer.partition(":")[0]
    if others := sorted(parsed.keys() - {name}):
        raise JobError(f"tokenizer_option: {others[0]!r} is not the tokenizer {name!r}")
    return dict(parsed.get(name, {}))


def _display() -> RowsDisplay:
    from speechmill.cli.views.tokens import RowsDisplay

    return RowsDisplay(err)


def _leave(stop: Stop, complete: bool) -> None:
    if stop():
        err.print(GOES_ON)
        raise typer.Exit(stop.exit_code)
    raise typer.Exit(EXIT_OK if complete else EXIT_SOME_FAILED)
