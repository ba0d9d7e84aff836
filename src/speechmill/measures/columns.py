"""What a dataset is told of a measure."""

from __future__ import annotations

from speechmill.dataset.measured import MeasureColumns
from speechmill.measures.base import Measure

__all__ = ["columns_of"]


def columns_of(measure: Measure) -> MeasureColumns:
    """Describe the columns that a measure makes."""
    return MeasureColumns(measure.name, measure.version, measure.recipe, measure.fields)
