"""Measures of rows whose audio is in hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechmill.dataset.measured import MeasureColumns
from speechmill.measures.base import Measure, RowToMeasure, Values
from speechmill.pipeline.intake import ReadyRow
from speechmill.records import Waveform

__all__ = ["columns_of", "measure_rows"]


def columns_of(measure: Measure) -> MeasureColumns:
    """Describe the columns that a measure makes, as a dataset keeps it."""
    return MeasureColumns(measure.name, measure.version, measure.recipe, measure.fields)


def measure_rows(
    measure: Measure, rows: Sequence[ReadyRow], columns: Sequence[Mapping[str, Any]]
) -> list[Values]:
    """Measure rows. ``columns`` are the values of each that the measure needs, by name.

    Raises:
        ModelError: the engine cannot run the measure's model.
    """
    given = zip(rows, columns, strict=True)
    return measure.measure([RowToMeasure(_waveform(measure, row), some) for row, some in given])


def _waveform(measure: Measure, row: ReadyRow) -> Waveform | None:
    if not measure.needs.audio:
        return None
    rate = measure.needs.sample_rate or row.owner.decoded_rate
    return Waveform(row.samples(rate), rate)
