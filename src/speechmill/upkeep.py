"""Keeping a sink in order: what killed builds left over, and what is gone from the source."""

from __future__ import annotations

from collections import defaultdict

from speechmill.dataset.commit import Version, remove, versions
from speechmill.dataset.layout import DATA, FAILURES, data_key, failures_key
from speechmill.dataset.reader import scan
from speechmill.dataset.schema import IDENTITY_COLUMNS
from speechmill.errors import JobError
from speechmill.planner import Plan, name_digest
from speechmill.records import Part
from speechmill.storage import Store

__all__ = ["prune", "tidy"]


def tidy(sink: Store, plan: Plan) -> None:
    """Take away what a build that was cut short left over: failures of recordings that have their
    row, and rows of recordings whose present version is known to be no audio."""
    stale: defaultdict[Part, set[str]] = defaultdict(set)
    for part, name in plan.stale_failures:
        stale[part].add(name)
    for part, names in stale.items():
        remove(sink, failures_key(part), lambda name, _, names=names: name in names)  # type: ignore[misc]
    outdated: defaultdict[Part, dict[str, Version]] = defaultdict(dict)
    for part, name, version in plan.outdated_rows:
        outdated[part][name] = version
    for part, rows in outdated.items():
        remove(sink, data_key(part), lambda name, v, rows=rows: rows.get(name) == v)  # type: ignore[misc]


def prune(sink: Store, plan: Plan) -> int:
    """Remove rows and failures of recordings that the plan's listing did not have.

    What lies below a folder that could not be looked into is not taken for gone. Returns how many
    recordings it were.

    Raises:
        JobError: nothing was listed, so that everything would go.
    """
    if not plan.names:
        raise JobError("the source lists nothing; --prune would empty the sink, so it was not done")

    def gone(name: str) -> bool:
        return name_digest(name) not in plan.names and not name.startswith(plan.unseen)

    pruned = 0
    for root in (DATA, FAILURES):
        for part, table in scan(sink, IDENTITY_COLUMNS, root):
            if any(gone(name) for name in versions(table)):
                pruned += remove(sink, part.key, lambda name, _: gone(name))
    return pruned
