"""The command ``speechmill``: its commands by name, and how errors end it.

Each command is one call down: flags and a TOML file become options, and what comes back is shown.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Annotated, NoReturn, cast

import typer
from rich.text import Text
from typer.rich_utils import rich_format_error

from speechmill._version import __version__
from speechmill.cli.build import build, plan
from speechmill.cli.console import (
    err,
    guard_streams,
    out,
    output_is_lost,
    tell_lost_output,
    visible,
)
from speechmill.cli.doctor import doctor
from speechmill.cli.exits import ExitCode
from speechmill.cli.export import export_app
from speechmill.cli.measure import measure
from speechmill.cli.queues import dead_letters_app, enqueue, work
from speechmill.cli.repartition import repartition
from speechmill.cli.show import failures, show
from speechmill.cli.tokens import decode, tokens_app
from speechmill.cli.units import units_app
from speechmill.errors import JobError, SpeechmillError

__all__ = ["app", "main"]

app = typer.Typer(
    name="speechmill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A bucket of recorded speech goes in, a training-ready Parquet dataset comes out.",
    epilog="Example: `speechmill build ./corpus ./out --model base --language en`",
)

CLICK_ERROR = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])
"""What the parser raises, its base class: older and newer typer have it in different places."""

EXTRA_WORDS = re.compile(r"(unexpected extra argument(?:s|\(s\))?) \(.*\)", re.DOTALL)

# Each with an example, which its help ends with.
COMMANDS = (
    (build, "build s3://voices/vctk s3://voices/output --profile r2"),
    (plan, "plan s3://voices/vctk s3://voices/output --profile r2"),
    (show, "show s3://voices/output --profile r2"),
    (failures, "failures s3://voices/output --profile r2"),
    (
        enqueue,
        "enqueue s3://voices/vctk kafka://broker:9092/recordings --sink s3://voices/output "
        "--profile r2",
    ),
    (
        work,
        "work kafka://broker:9092/recordings s3://voices/output --group mill --language en "
        "--profile r2",
    ),
    (measure, "measure s3://voices/output level --profile r2"),
    (decode, "decode s3://voices/output ./wav --where \"folder_name = 'p225'\""),
    (
        repartition,
        "repartition s3://voices/output ./by-language --by language,folder_name "
        "--rows-per-file 10000",
    ),
    (doctor, "doctor s3://voices/vctk s3://voices/output --profile r2"),
)
GROUPS = (
    ("export", export_app, "export parquet ./out ./plain"),
    ("tokens", tokens_app, "tokens add s3://voices/output --tokenizer mimi"),
    ("units", units_app, "units fit s3://voices/vctk --features whisper --clusters 500"),
    ("dead-letters", dead_letters_app, "dead-letters list kafka://broker:9092/recordings"),
)
for command, example in COMMANDS:
    app.command(epilog=f"Example: `speechmill {example}`")(command)
for name, group, example in GROUPS:
    app.add_typer(group, name=name, epilog=f"Example: `speechmill {example}`")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"speechmill {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _exit(code: int) -> NoReturn:
    """End at once: threads that wait for a store that is down are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """The command ``speechmill``: errors become one message and an exit code."""
    guard_streams()
    code = _run()
    if tell_lost_output():
        code = code or ExitCode.FAILED
    if output_is_lost():
        _exit(code)  # Python would try to write it once more, and complain
    sys.exit(code)


def _run() -> int:
    """Run the command. Returns its exit code, unless threads still wait for a store."""
    try:
        _check_surroundings()
        return int(app(standalone_mode=False) or ExitCode.DONE)
    except CLICK_ERROR as error:
        error.message = _harmless(error.message)
        rich_format_error(error)
        return error.exit_code
    except typer.Abort:
        return ExitCode.FAILED
    except SpeechmillError as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=not err.is_terminal)
        _exit(ExitCode.USAGE if isinstance(error, JobError) else ExitCode.FAILED)
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
        _exit(ExitCode.FAILED)


def _check_surroundings() -> None:
    """Refuse what no command can do anything with. Arguments are not shown: a secret may be in one.

    Raises:
        JobError: the working directory is gone, or an argument is no text.
    """
    try:
        os.getcwd()  # noqa: PTH109 - whether there is one
    except OSError as error:
        raise JobError(
            f"the working directory cannot be found ({error.strerror}): change to another one"
        ) from None
    for number, argument in enumerate(sys.argv[1:], 1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise JobError(f"argument {number} {_why_no_text(argument)}") from None


def _why_no_text(argument: str) -> str:
    try:
        os.fsencode(argument).decode()
    except UnicodeError:
        return (
            "holds bytes that are not UTF-8, which no row, recipe or log could name: give the "
            "folder or file a name in UTF-8 (a link will do)"
        )
    return (
        f"cannot be read, as Python takes this locale for {sys.getfilesystemencoding()}: set "
        "PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"
    )


def _harmless(message: str | None) -> str:
    """What the parser says, without words that belong to no flag: a secret may be among them."""
    return visible(EXTRA_WORDS.sub(r"\1", message or ""), keep="\n")
