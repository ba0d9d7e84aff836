"""What the rows of a sink lack of what is to be added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.reader import scan
from speechmill.enrich.audio import SPAN_COLUMNS
from speechmill.enrich.base import Addition, RowState
from speechmill.enrich.staging import RowKey, row_keys
from speechmill.storage import Object, Store

__all__ = ["GivenUp", "LackingPart", "Lookup", "columns_to_look_at", "lacking_of", "look_up"]

GivenUp = Mapping[tuple[int, str], str]
"""Why an addition (its number) can make nothing of a recording (its file name)."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What the rows of one part lack.

    ``rows`` are those that one of the additions is to be made for; ``keys`` are these, addition by
    addition. ``staged`` counts the rows that lack something of which all lies ready, ``there``
    those that lack nothing, and ``other`` those of other recipes.
    """

    rows: pa.Table
    keys: tuple[frozenset[RowKey], ...]
    staged: int
    there: int
    other: int


@dataclass(frozen=True, slots=True)
class LackingPart:
    """A part with rows that are to be made, and the seconds of audio of these."""

    part: Object
    audio_s: float


@dataclass(slots=True)
class Lookup:
    """What a look at the whole sink has found: parts with rows that are to be made, and how many of
    them, seconds of audio; and rows as ``Lacking`` counts them."""

    parts: list[LackingPart] = field(default_factory=list)
    rows: int = 0
    audio_s: float = 0.0
    staged: int = 0
    there: int = 0
    other: int = 0


def look_up(
    sink: Store,
    additions: Sequence[Addition],
    given_up: GivenUp,
    is_ours: Callable[[str], bool] = lambda _: True,
) -> Lookup:
    """Count the rows of a sink, and find the parts that lack what is not made yet.

    ``is_ours`` says of a part's key whether this process does it.

    Raises:
        DatasetError: a part cannot be read.
    """
    found = Lookup()
    staged = [set(addition.staging.keys()) for addition in additions]
    for part, table in scan(sink, columns_to_look_at(additions)):
        if not is_ours(part.key):
            continue
        lacking = lacking_of(part.key, table, additions, staged, given_up)
        found.staged += lacking.staged
        found.there += lacking.there
        found.other += lacking.other
        if lacking.rows.num_rows:
            lengths = pc.sum(pc.subtract(lacking.rows["end_s"], lacking.rows["start_s"]))
            found.parts.append(LackingPart(part, lengths.as_py()))
            found.rows += lacking.rows.num_rows
            found.audio_s += lengths.as_py()
    return found


def columns_to_look_at(additions: Sequence[Addition]) -> list[str]:
    """The columns that ``lacking_of`` tells by."""
    return list(dict.fromkeys([*SPAN_COLUMNS, *(c for a in additions for c in a.looked_at)]))


def lacking_of(
    part_key: str,
    table: pa.Table,
    additions: Sequence[Addition],
    staged_keys: Sequence[set[str]] | None,
    given_up: GivenUp,
) -> Lacking:
    """What the rows of a part lack.

    ``table`` has its ``columns_to_look_at``. ``staged_keys`` are the objects of each addition's
    staging; None for a look at this part's. What is ``given_up`` is not tried again.
    """
    keys = row_keys(table)
    missing: list[frozenset[RowKey]] = []
    states: list[Sequence[RowState]] = []
    for number, addition in enumerate(additions):
        states.append(addition.states(table))
        ready: set[RowKey] = set()
        if staged_keys is None or addition.staging.key(part_key) in staged_keys[number]:
            made = addition.staging.read(part_key)
            ready = set(row_keys(made)) if made is not None else ready
        missing.append(
            frozenset(
                key
                for key, state in zip(keys, states[-1], strict=True)
                if state == "lacking" and key not in ready and (number, key[0]) not in given_up
            )
        )
    wanted = frozenset[RowKey]().union(*missing)
    by_row = list(zip(*states, strict=True))
    hopeless = [
        all((number, key[0]) in given_up for number, one in enumerate(row) if one == "lacking")
        for key, row in zip(keys, by_row, strict=True)
    ]
    lacks = ["lacking" in row for row in by_row]
    take = [i for i, key in enumerate(keys) if key in wanted]
    return Lacking(
        rows=table.take(pa.array(take, pa.int64())),
        keys=tuple(missing),
        staged=sum(
            lack and not lost and key not in wanted
            for lack, lost, key in zip(lacks, hopeless, keys, strict=True)
        ),
        there=sum("there" in row and "lacking" not in row for row in by_row),
        other=sum(set(row) == {"other"} for row in by_row),
    )
