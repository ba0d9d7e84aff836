"""The commands that work on the tokens of a dataset: ``decode``, and ``tokens`` add, stats and
verify."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from speechmill.cli.console import err, out
from speechmill.cli.enrich import Enriching, Source, SourceStorage
from speechmill.cli.exits import ExitCode, leave, resumable
from speechmill.cli.options import Destination, OutStorage, ReadStorage, Sink, with_flags
from speechmill.errors import JobError
from speechmill.job import parse_tokenizer_options

__all__ = ["decode", "tokens_app"]

tokens_app = typer.Typer(
    no_args_is_help=True, help="Work on a dataset's tokens: add, look at and verify them."
)

Device = Annotated[str, typer.Option(help="Where the tokenizer runs: auto, cpu or cuda.")]
Column = Annotated[
    str | None, typer.Option(help="Which tokens, where there are several: token, token_mimi, …")
]
Model = Annotated[
    str | None, typer.Option(help="Where the tokenizer's weights are, if not where they were.")
]


@with_flags
def decode(
    sink: Sink,
    destination: Destination,
    *,
    column: Column = None,
    where: Annotated[
        str | None, typer.Option(help="Which rows: \"folder_name = 'p225' AND duration_s < 10\".")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take at most so many of these rows.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    storage: ReadStorage,
    out_storage: OutStorage,
) -> None:
    """Turn codes back into sound: a WAV file a row of SINK, called as its recording, in OUT.

    A recording of several rows gets a file each, with the span in its name. Exit codes: 0 all
    written or there already, 1 could not run, 2 wrong usage, 3 some rows failed.
    """
    from speechmill.cli.views.tokens import DecodeDisplay, print_decoded
    from speechmill.tokens.wav_files import decode_dataset

    store, target = storage.open(sink), out_storage.open(destination, otherwise=storage)
    with resumable() as stop, closing(DecodeDisplay(err)) as display:
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
    print_decoded(out, report)
    leave(report.complete, stop)


@tokens_app.command(
    "add", epilog="Example: `speechmill tokens add s3://voices/output --tokenizer mimi`"
)
@with_flags
def add(
    sink: Sink,
    *,
    tokenizer: Annotated[
        str, typer.Option(help="What makes the tokens: mfcc, encodec, mimi, …, or NAME:MODEL.")
    ],
    tokenizer_option: Annotated[
        list[str] | None, typer.Option(help="An option of it, such as encodec.bandwidth=3.")
    ] = None,
    device: Device = "auto",
    enriching: Enriching,
) -> None:
    """Add a column of tokens to the rows of SINK, without transcribing again.

    Readers see nothing of it until all is made. The same command again goes on where it was cut
    short. Exit codes: 0 every row has them, 1 could not run, 2 wrong usage, 3 done but some rows
    have none (their recordings are gone, changed or failed), 130 or 143 stopped by a signal.
    """
    from speechmill.enrich.add import add_tokens

    options = _options(tokenizer, tokenizer_option or [])
    enriching.run(add_tokens, sink, tokenizer, options, device=device)


@tokens_app.command("stats", epilog="Example: `speechmill tokens stats s3://voices/output`")
@with_flags
def stats(
    sink: Sink,
    *,
    column: Column = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    storage: ReadStorage,
) -> None:
    """Show how the tokens of SINK are distributed: rates, use of the codebooks, entropy."""
    from speechmill.cli.views.tokens import RowsDisplay, print_stats
    from speechmill.tokens.stats import token_stats

    found = token_stats(storage.open(sink), column=column, progress=RowsDisplay(err).parts)
    if as_json:
        out.print(json.dumps([asdict(one) for one in found], indent=2), soft_wrap=True)
    else:
        print_stats(out, found)


@tokens_app.command(
    "verify", epilog="Example: `speechmill tokens verify s3://voices/output --sample 100`"
)
@with_flags
def verify(
    sink: Sink,
    *,
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
    storage: ReadStorage,
    source: Source = None,
    source_storage: SourceStorage,
) -> None:
    """Make the tokens of some rows of SINK anew, each row alone, and compare.

    Exit codes: 0 they are the same, 1 they differ by more than --tolerance (or could not run),
    2 wrong usage, 3 some of the rows could not be compared.
    """
    from speechmill.cli.views.tokens import VerifyDisplay, print_verified
    from speechmill.tokens.verify import verify_tokens

    with closing(VerifyDisplay(err)) as display:
        report = verify_tokens(
            storage.open(sink),
            column=column,
            sample=sample,
            seed=seed,
            model=model,
            device=device,
            source_url=source,
            source_options=source_storage.options(storage),
            observer=display,
        )
    print_verified(out, report)
    if report.off > tolerance:
        raise typer.Exit(ExitCode.FAILED)
    leave(not report.lost)


def _options(tokenizer: str, given: list[str]) -> dict[str, Any]:
    """The tokenizer's options, given as NAME.OPTION=VALUE."""
    parsed = parse_tokenizer_options(given)
    name = tokenizer.partition(":")[0]
    if others := sorted(parsed.keys() - {name}):
        raise JobError(f"tokenizer_option: {others[0]!r} is not the tokenizer {name!r}")
    return dict(parsed.get(name, {}))
