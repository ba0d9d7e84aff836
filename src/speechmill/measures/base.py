"""What a measure is: columns that are computed of one row, whatever is beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from speechmill.records import Waveform

__all__ = ["Measure", "Needs", "RowToMeasure", "Values"]

Values = tuple[Any, ...]
"""What a measure says of one row: a value for each of its ``fields``, in their order."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a measure looks at.

    ``sample_rate`` is the rate (Hz) of the waveform that it is given; 0 for that of the recording.
    ``columns`` are those of the row that it is given, by name.
    """

    audio: bool = True
    sample_rate: int = 0
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowToMeasure:
    """A row as a measure is given it.

    ``waveform`` is mono, float32 [num_samples] in −1..1, at least one sample, at the rate that the
    measure needs; None where it needs no audio. ``columns`` are values of the row by name.
    """

    waveform: Waveform | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Measure(Protocol):
    """Computes columns of rows.

    What it says of a row depends on that row alone: never on the other rows of the call, their
    order or their number, nor on the engine. A row that was measured has a value in at least one
    of the ``fields``; a row in which all are null counts as not measured. (What looks at a whole
    dataset, such as duplicates, is no such measure: it is made after a build, from its rows.)
    """

    @property
    def name(self) -> str:
        """What it is called in ``speechmill measure``."""

    @property
    def version(self) -> int:
        """Raised by hand when values would differ: rows of another version are told apart."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns that it makes; all may be null."""

    @property
    def needs(self) -> Needs:
        """What it looks at."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every other choice that shapes the values, as JSON values: options, weights' digests."""

    @property
    def source(self) -> str:
        """How it measures, and where the method is from, in a line."""

    def measure(self, rows: Sequence[RowToMeasure]) -> list[Values]:
        """Measure rows. Returns the values of each, in order.

        Raises:
            ModelError: the engine cannot run the measure's model.
        """
