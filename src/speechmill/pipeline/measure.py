"""Measures of rows whose audio is in hand, in a build or of rows that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechmill.errors import ModelError, UnavailableError
from speechmill.measures.base import Measure, RowToMeasure, Values
from speechmill.pipeline.intake import ReadyRow
from speechmill.pipeline.isolate import Breaker, all_or_each
from speechmill.records import Waveform

__all__ = ["measure_job_rows", "measure_rows"]


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


def measure_job_rows(
    measures: Sequence[Measure],
    rows: Sequence[ReadyRow],
    breakers: Mapping[str, Breaker],
    columns: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Give the rows of a build the values of measures; ``columns`` are the rows' own, by name.

    A row that cannot be measured stays without values, which is no failure: it is a row all the
    same, and ``speechmill measure`` tries it again. ``breakers`` count errors, by measure.

    Raises:
        UnavailableError: a store stays down.
        ModelError: a measure's engine fails again and again.
    """
    told = columns or [{}] * len(rows)
    good = [pair for pair in zip(rows, told, strict=True) if pair[0].owner.is_good]
    for measure in measures:
        names = [field.name for field in measure.fields]

        def call(
            some: Sequence[tuple[ReadyRow, Mapping[str, Any]]],
            measure: Measure = measure,
            names: Sequence[str] = names,
        ) -> None:
            values = measure_rows(measure, [row for row, _ in some], [told for _, told in some])
            for (row, _), one in zip(some, values, strict=True):
                row.measured.update(zip(names, one, strict=True))
            breakers[measure.name].worked()

        def failed(_: object, error: Exception, breaker: Breaker = breakers[measure.name]) -> None:
            broken = isinstance(error, ModelError) and breaker.failed()
            if broken or isinstance(error, UnavailableError):
                raise error

        all_or_each(good, call, failed)
