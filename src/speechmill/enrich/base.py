"""What is added to rows that are there: columns, made of the rows' audio or of other columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from speechmill.enrich.staging import Staging
from speechmill.pipeline.intake import ReadyRow
from speechmill.storage import Store

__all__ = ["Addition", "EnrichObserver", "EnrichReport", "RowState"]

RowState = Literal["lacking", "there", "other"]
"""Whether a row lacks what is added, has it, or is of a recipe that it is not made for."""


class Addition(Protocol):
    """Columns of one tokenizer or one measure, on their way into a dataset.

    They are made row by row, staged beside the data, and put into the parts once all of them are
    made.
    """

    @property
    def name(self) -> str:
        """The tokenizer or measure."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns."""

    @property
    def staging(self) -> Staging:
        """Where what is made lies until it is put into the parts."""

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns of a row that it is made of, besides its audio."""

    def states(self, part: pa.Table) -> list[RowState]:
        """What each row of a part is for this addition. The table has ``looked_at`` of it."""

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The columns by which ``states`` tells."""

    def compute(
        self, rows: Sequence[ReadyRow], columns: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Any, ...]]:
        """Make the values of rows, one for each field, whatever the others of the call are.

        Raises:
            SpeechmillError: a row cannot be made; ModelError, if that is the engine's fault.
        """

    def arrays(self, values: Sequence[tuple[Any, ...]]) -> list[pa.Array]:
        """Values of rows as the columns' arrays."""

    def notes(self) -> Mapping[str, Any]:
        """What is staged with the values as JSON, for ``put_into``."""

    @property
    def mismatch(self) -> tuple[float, ...]:
        """See ``EnrichReport``; () where nothing is checked."""

    def before_merging(self, sink: Store) -> None:
        """Do what must stand in the sink before a part gets the columns."""

    def put_into(self, part: pa.Table, staged: pa.Table | None) -> pa.Table | None:
        """A part with what was made for it; None where that changes nothing."""

    def after_merging(self, failures: pa.Table) -> pa.Table | None:
        """A part of failures as it should be once the rows have the columns; None for as it is."""


@dataclass
class EnrichReport:
    """What an enrichment did. Durations in seconds.

    ``rows`` were made; ``resumed`` lay ready from a command or a worker that was cut short;
    ``already`` had all. ``lost`` counts the rows that have none, by why: gone from the source,
    changed there, or failed; ``reasons`` says for some, by file name. Rows of ``other`` recipes
    were left alone: they wait for a build to replace them. ``compute_s`` is what each addition
    took, by name, over all threads.
    """

    sink: str
    columns: tuple[str, ...]
    recipe: str
    rows: int = 0
    resumed: int = 0
    already: int = 0
    other: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    compute_s: dict[str, float] = field(default_factory=dict)
    parts: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    mismatch: tuple[float, ...] = ()
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether every row of the dataset's recipe has what was added."""
        return not (self.lost or self.stopped)


class EnrichObserver:
    """Who watches an enrichment. Called from one thread."""

    def planned(self, rows: int, audio_s: float, resumed: int) -> None:
        """So many rows are to be made; so many more lie ready from before."""

    def progress(self, report: EnrichReport) -> None:
        """So much is made. Called often."""

    def merging(self, done: int, total: int) -> None:
        """So many of the parts have their columns."""
