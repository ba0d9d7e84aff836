"""How a command ends: its exit code, and what it says of going on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import typer

from speechmill.cli.console import err, tell_lost_output
from speechmill.cli.signals import GOES_ON, STOP_GRACE_S, Stop
from speechmill.errors import UnavailableError

__all__ = ["ExitCode", "leave", "resumable"]


class ExitCode(IntEnum):
    """Exit codes of all commands. One that a signal has stopped ends with 128 and its number."""

    DONE = 0
    FAILED = 1  # it could not run, or what it checked is not so
    USAGE = 2  # what was asked for makes no sense; also the parser's own code
    SOME_FAILED = 3  # done, but for some recordings, rows or messages


def leave(complete: bool, stop: Stop | None = None, *, so_far: str = "") -> NoReturn:
    """End a command that works: stopped by a signal, done but for some, or done.

    That its report could not be printed changes nothing of that.
    ``so_far`` is what a stopped command says of what it did.
    """
    tell_lost_output(of_work=True)
    if stop is not None and stop():
        err.print(f"{so_far}; {GOES_ON}" if so_far else GOES_ON)
        raise typer.Exit(stop.exit_code)
    raise typer.Exit(ExitCode.DONE if complete else ExitCode.SOME_FAILED)


@contextmanager
def resumable(*, grace_s: float = STOP_GRACE_S) -> Iterator[Stop]:
    """Hear signals meanwhile, and say how to go on where a store does not answer.

    For commands that, given again, go on where they were cut short.
    """
    stop = Stop(err, grace_s=grace_s)
    with stop.listening():
        try:
            yield stop
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}\nonce the store answers again, the same command goes on from here"
            ) from None
