"""Signals that ask a command to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["GOES_ON", "STOP_GRACE_S", "Stop"]

STOP_GRACE_S = 20.0  # a stop that takes longer is cut short: commits are atomic
GOES_ON = "stopped; the same command goes on from here"


class Stop:
    """SIGINT and SIGTERM: the first one asks the work to stop, a second one ends the process.

    Until the work asks for the first time it has nothing in hand (it loads a model, lists, or
    plans): then the first one ends the process, too.
    """

    def __init__(self, console: Console, *, grace_s: float = STOP_GRACE_S) -> None:
        self._console, self._grace_s = console, grace_s
        self.signal: int | None = None
        self._asked = False

    def __call__(self) -> bool:
        """Whether to stop."""
        self._asked = True
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What the process is to end with, once it was asked to stop."""
        return 128 + (self.signal or signal.SIGINT)

    def _handle(self, number: int, _: object) -> None:
        again = self.signal is not None
        self.signal = number
        if again or not self._asked:
            self._leave_at_once()
        self._console.print(
            "\nstopping: what is in hand is being committed (again to stop at once)"
        )
        timer = threading.Timer(self._grace_s, self._leave_at_once)
        timer.daemon = True
        timer.start()

    def _leave_at_once(self) -> None:
        # An exception would not do: raised within a library's import it becomes another one.
        self._console.print(GOES_ON)
        os._exit(self.exit_code)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals meanwhile."""
        previous = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
