"""Keeping a sink in order: what killed builds left over, and what is gone from the source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from speechmill.dataset.commit import Version, remove, versions
from speechmill.dataset.layout import DATA, FAILURES, data_key
from speechmill.dataset.reader import scan
from speechmill.dataset.schema import IDENTITY_COLUMNS
from speechmill.errors import JobError, NotFoundError, UnsupportedError
from speechmill.pipeline.listing import name_digest
from speechmill.pipeline.planner import Plan
from speechmill.records import Part
from speechmill.storage import Store

__all__ = ["count_gone", "prune", "tidy"]


def tidy(sink: Store, plan: Plan) -> None:
    """Take away what a build that was cut short left over: failures of recordings that have their
    row, and rows of recordings whose present version is known to be no audio."""
    stale: defaultdict[str, set[str]] = defaultdict(set)
    for key, name in plan.stale_failures:
        stale[key].add(name)
    for key, names in stale.items():
        remove(sink, key, lambda name, _, names=names: name in names)  # type: ignore[misc]
    outdated: defaultdict[Part, dict[str, Version]] = defaultdict(dict)
    for part, name, version in plan.outdated_rows:
        outdated[part][name] = version
    for part, rows in outdated.items():
        remove(sink, data_key(part), lambda name, v, rows=rows: rows.get(name) == v)  # type: ignore[misc]


def prune(source: Store, sink: Store, plan: Plan) -> int:
    """Remove rows and failures of recordings that are gone from the source.

    Returns how many recordings were removed.

    Raises:
        JobError: nothing was listed, so that everything would go.
    """
    return sum(
        remove(sink, key, lambda name, _, names=names: name in names)  # type: ignore[misc]
        for key, names in _gone(source, sink, plan)
    )


def count_gone(source: Store, sink: Store, plan: Plan) -> int:
    """Count the recordings that ``prune`` would remove. Raises as it does."""
    return sum(len(names) for _, names in _gone(source, sink, plan))


def _gone(source: Store, sink: Store, plan: Plan) -> Iterator[tuple[str, set[str]]]:
    """The recordings of each part that the plan's listing did not have.

    What lies below a folder that could not be looked into is not taken for gone, and neither is
    what the source has by now: another build may have added it meanwhile.
    """
    if not plan.names:
        raise JobError("the source lists nothing; --prune would empty the sink, so it was not done")
    for root in (DATA, FAILURES):
        for part, table in scan(sink, IDENTITY_COLUMNS, root):
            names = {
                name
                for name in versions(table)
                if name_digest(name) not in plan.names
                and not name.startswith(plan.unseen)
                and not _is_there(source, name)
            }
            if names:
                yield part.key, names


def _is_there(source: Store, name: str) -> bool:
    try:
        source.head(name)
    except (NotFoundError, UnsupportedError):
        return False
    return True
