"""What a terminal and a pipe are shown of work that gets on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from speechmill.builder import Observer
from speechmill.cli.views import progress
from speechmill.cli.views.build import BuildDisplay
from speechmill.cli.views.progress import ProgressDisplay
from speechmill.cli.views.queues import EnqueueDisplay, WorkDisplay
from speechmill.cli.views.repartition import RepartitionDisplay
from speechmill.cli.views.tokens import AddDisplay, DecodeDisplay, VerifyDisplay
from speechmill.cli.views.units import FitDisplay
from speechmill.enrich.add import EnrichObserver
from speechmill.export import repartition
from speechmill.queues import enqueue, tally
from speechmill.tokens.verify import VerifyObserver
from speechmill.tokens.wav_files import DecodeObserver
from speechmill.units.fit import FitObserver


@pytest.mark.parametrize(
    ("display", "observer"),
    [
        (AddDisplay, EnrichObserver),
        (BuildDisplay, Observer),
        (DecodeDisplay, DecodeObserver),
        (EnqueueDisplay, enqueue.Observer),
        (FitDisplay, FitObserver),
        (RepartitionDisplay, repartition.Observer),
        (VerifyDisplay, VerifyObserver),
        (WorkDisplay, tally.Observer),
    ],
)
def test_a_display_is_the_observer_of_its_work(display: type, observer: type) -> None:
    assert observer in display.__mro__


def shown(*, terminal: bool) -> tuple[ProgressDisplay, io.StringIO]:
    """A display, and what it writes."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=60, color_system=None)
    return ProgressDisplay(console), text


def test_a_pipe_gets_a_whole_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    display, text = shown(terminal=False)
    display.begin(100)
    display.show(10, "10/100 rows")
    assert text.getvalue() == ""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    display.show(50, "50/100 rows" + 60 * ".", "3 failed")
    display.close()
    (line,) = text.getvalue().splitlines()
    assert line.startswith("50/100 rows..")
    assert line.endswith(" s left  3 failed")


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    display, text = shown(terminal=True)
    display.begin(100)
    display.show(50, "50/100 rows", "3 failed")
    display.close()
    said = text.getvalue()
    assert "50/100 rows" in said
    assert "3 failed" in said
    assert said.endswith("\x1b[2K")  # the last line is erased


def test_nothing_is_shown_of_work_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    display, text = shown(terminal=False)
    display.begin(0)
    display.show(0, "0/0 rows")
    display.close()
    assert text.getvalue() == ""
