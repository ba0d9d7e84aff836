"""The commands ``build`` and ``plan``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from speechmill.cli.console import err, out
from speechmill.cli.exits import leave, resumable
from speechmill.cli.options import with_config
from speechmill.job import Job, load_job

__all__ = ["build", "plan"]


def _takes_a_job(command: Callable[[Job], None]) -> Callable[..., None]:
    """Give a command SOURCE, SINK, --config and a flag for every other field of ``Job``."""

    def run(config: Path | None, given: dict[str, Any]) -> None:
        command(load_job(config, given))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    places = ("source", "sink")
    flags = [(Job, name) for name in Job.model_fields if name not in places]
    return with_config(run, [(Job, name) for name in places], flags)


@_takes_a_job
def build(job: Job) -> None:
    """Build the dataset: transcribe and tokenize what SINK lacks of SOURCE.

    The same command again goes on where it was cut short, and finds what is new or has changed.
    Exit codes: 0 all done, 1 could not run, 2 wrong usage, 3 done but some recordings failed,
    130 or 143 stopped by a signal.
    """
    with resumable() as stop:
        # Imported here: a signal meanwhile ends the command at once, with one line.
        from speechmill.builder import build as run
        from speechmill.cli.views.build import BuildDisplay, print_report

        with closing(BuildDisplay(err)) as display:
            report = run(job, observer=display, stop=stop)
    print_report(out, report)
    leave(report.complete, stop)


@_takes_a_job
def plan(job: Job) -> None:
    """Show what a build would do: recordings, bytes, shards, already done. Writes nothing."""
    from speechmill.builder import plan as make
    from speechmill.cli.views.plan import print_plan

    print_plan(out, make(job))
