"""The commands that look into a dataset: ``show`` and ``failures``."""

from __future__ import annotations

from speechmill.cli.console import err, out, print_fields
from speechmill.cli.options import ReadStorage, Sink, with_flags

__all__ = ["failures", "show"]


@with_flags
def show(sink: Sink, storage: ReadStorage) -> None:
    """Show what SINK holds: rows, hours, folders, languages, failures, what made them."""
    from speechmill.cli.views.show import print_summary
    from speechmill.dataset.state import read_recipe, sink_state
    from speechmill.dataset.summary import summarize

    store = storage.open(sink)
    state = sink_state(store)
    print_summary(out, store.url, state, read_recipe(store, state["recipe"]), summarize(store))


@with_flags
def failures(sink: Sink, storage: ReadStorage) -> None:
    """List the recordings of SINK that failed, and why: path, stage, reason, attempts; by tabs."""
    from speechmill.dataset.state import sink_state
    from speechmill.dataset.summary import failed_recordings

    store = storage.open(sink)
    sink_state(store)
    failed = failed_recordings(store)
    for row in failed:
        print_fields(row.file_name, row.stage, f"{row.error}: {row.message}", str(row.attempts))
    err.print(f"{len(failed)} failed" if failed else "no failures")
