"""How commands end."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import typer

from speechmill.cli.console import err
from speechmill.cli.exits import ExitCode, leave, resumable
from speechmill.cli.signals import Stop
from speechmill.errors import UnavailableError


def code_of(complete: bool, stop: Stop | None = None, so_far: str = "") -> int:
    with pytest.raises(typer.Exit) as ended:
        leave(complete, stop, so_far=so_far)
    return ended.value.exit_code


def test_a_command_ends_by_whether_all_was_done() -> None:
    assert code_of(True) == code_of(True, Stop(err)) == ExitCode.DONE
    assert code_of(False) == code_of(False, Stop(err)) == ExitCode.SOME_FAILED
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_a_signal_stopped_says_how_to_go_on(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    # No grace that ends: it would end the tests, which go on in this process.
    with resumable(grace_s=threading.TIMEOUT_MAX) as stop:
        assert not stop()  # the work has begun
        os.kill(os.getpid(), number)
        assert stop()
    assert code_of(False, stop, "12 rows were written") == 128 + number
    said = capsys.readouterr().err
    assert said.endswith("12 rows were written; stopped; the same command goes on from here\n")


def test_a_store_that_does_not_answer_is_no_reason_to_begin_anew() -> None:
    on_again = pytest.raises(UnavailableError, match=r"is away\nonce .* the same command goes on")
    with on_again, resumable():
        raise UnavailableError("the store is away")
