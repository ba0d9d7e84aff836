"""What every measure promises."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.dataset.schema import row_schema
from speechmill.errors import JobError
from speechmill.measures import MEASURES, open_measures
from speechmill.measures.base import Measure, RowToMeasure
from speechmill.measures.columns import columns_of
from speechmill.measures.level import SILENT_DBFS, LevelMeasure
from speechmill.records import Waveform

RATE = 22_050
TEXTS = ["It was so.", "", "Über allen Gipfeln", "one two three"]


def a_row(measure: Measure, samples: Any, number: int = 0) -> RowToMeasure:
    """A row with what the measure says that it needs, and nothing else."""
    schema = row_schema(())
    columns: dict[str, Any] = {}
    for name in measure.needs.columns:
        of_type = schema.field(name).type
        if pa.types.is_string(of_type):
            columns[name] = TEXTS[number % len(TEXTS)]
        else:
            columns[name] = 1.5 + number if pa.types.is_floating(of_type) else None
    waveform = Waveform(np.asarray(samples, np.float32), measure.needs.sample_rate or RATE)
    return RowToMeasure(waveform if measure.needs.audio else None, columns)


def noise(seed: int, length: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(0, 0.3, length)
    return drawn.clip(-1, 1).astype(np.float32)


@pytest.fixture(params=sorted(MEASURES))
def measure(request: pytest.FixtureRequest) -> Measure:
    (opened,) = open_measures([request.param])
    return opened


EDGES = {
    "silence": np.zeros(4_000),
    "clipping": np.sign(noise(0, 4_000)),
    "one sample": [0.25],
    "one silent sample": [0.0],
    "DC": np.full(4_000, -0.5),
    "noise": noise(1, 20_000),
}


def test_names_and_columns_are_its_own() -> None:
    opened = open_measures(list(MEASURES))
    assert [one.name for one in opened] == list(MEASURES)
    columns = [field.name for one in opened for field in one.fields]
    assert len(columns) == len(set(columns))
    assert not set(columns) & set(row_schema(()).names)


def test_what_it_needs_of_a_row_is_a_column_of_rows(measure: Measure) -> None:
    assert set(measure.needs.columns) <= set(row_schema(()).names)
    assert measure.needs.audio or measure.needs.columns
    assert measure.needs.sample_rate >= 0


def test_what_is_kept_of_it_is_json_that_says_which_version(measure: Measure) -> None:
    assert json.loads(json.dumps(dict(measure.recipe))) == measure.recipe
    described = columns_of(measure).described()
    assert json.loads(json.dumps(described)) == described
    assert described["columns"]
    assert described["version"] >= 1
    assert measure.source
    assert "\n" not in measure.source


@pytest.mark.parametrize("samples", EDGES.values(), ids=EDGES.keys())
def test_any_waveform_has_a_value_of_the_fields_types(measure: Measure, samples: Any) -> None:
    (values,) = measure.measure([a_row(measure, samples)])
    assert len(values) == len(measure.fields)
    assert all(field.nullable for field in measure.fields)
    stored = [
        pa.array([value], field.type)[0].as_py()
        for value, field in zip(values, measure.fields, strict=True)
    ]
    assert any(value is not None for value in stored)
    assert all(math.isfinite(value) for value in stored if isinstance(value, float))
    for value, field, there in zip(values, measure.fields, stored, strict=True):
        if pa.types.is_floating(field.type) and there is not None:
            assert there == value  # nothing is rounded on its way


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 6_000), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    cuts=st.integers(1, 6),
)
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_row_has_the_same_values_alone_and_in_any_batch_order_and_company(
    name: str, lengths: list[int], order: random.Random, cuts: int
) -> None:
    (measure,) = open_measures([name])
    rows = [a_row(measure, noise(i, length), i) for i, length in enumerate(lengths)]
    alone = [measure.measure([row])[0] for row in rows]
    places = list(range(len(rows)))
    order.shuffle(places)
    for first in range(0, len(places), cuts):
        batch = places[first : first + cuts]
        assert measure.measure([rows[i] for i in batch]) == [alone[i] for i in batch]
    (reopened,) = open_measures([name])
    assert reopened.measure(rows) == alone


def test_it_leaves_the_audio_as_it_is(measure: Measure) -> None:
    """Other measures, and tokenizers, are given the same array."""
    row = a_row(measure, noise(2, 5_000))
    given = np.empty(0, np.float32) if row.waveform is None else row.waveform.samples
    before = given.copy()
    measure.measure([row])
    assert np.array_equal(given, before)


def test_no_rows_have_no_values(measure: Measure) -> None:
    assert measure.measure([]) == []


def test_a_name_that_is_none_is_said_with_the_nearest() -> None:
    with pytest.raises(JobError, match="no measure 'levle'; did you mean 'level'"):
        open_measures(["levle"])
    assert len(open_measures(["level", "level"])) == 1


# level


def level_of(samples: Any) -> dict[str, float]:
    measure = LevelMeasure()
    (values,) = measure.measure([a_row(measure, samples)])
    return {f.name: float(v) for f, v in zip(measure.fields, values, strict=True)}


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 50_000),
    gain=st.floats(1e-4, 3.0),
    offset=st.floats(-0.5, 0.5),
)
def test_level_is_what_plain_float64_says(
    seed: int, length: int, gain: float, offset: float
) -> None:
    drawn = gain * np.random.default_rng(seed).normal(0, 0.3, length) + offset
    samples = drawn.clip(-1, 1).astype(np.float32)
    exact = samples.astype(np.float64)
    found = level_of(samples)
    assert found["peak_dbfs"] == pytest.approx(
        20 * np.log10(np.max(np.abs(exact))), rel=1e-6, abs=1e-6
    )
    rms = math.sqrt(math.fsum(exact**2) / length)
    assert found["rms_dbfs"] == pytest.approx(20 * math.log10(rms), rel=1e-6, abs=1e-6)
    assert found["dc_offset"] == pytest.approx(math.fsum(exact) / length, rel=1e-6, abs=1e-6)
    clipped = sum(abs(sample) >= 32_767 / 32_768 for sample in exact.tolist())
    assert found["clipped_share"] == np.float32(clipped / length)


def test_level_adds_up_blocks_of_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(3, 10_000)
    whole = level_of(samples)
    monkeypatch.setattr("speechmill.measures.level.BLOCK", 999)
    assert level_of(samples) == pytest.approx(whole, rel=1e-6)


def test_level_of_a_sine_a_square_an_offset_and_silence() -> None:
    sine = np.sin(2 * np.pi * np.arange(RATE) / 50)
    assert level_of(0.5 * sine)["rms_dbfs"] == pytest.approx(-6.02 - 3.01, abs=0.01)
    square = level_of(np.sign(sine + 1e-9))
    assert (square["peak_dbfs"], square["rms_dbfs"], square["clipped_share"]) == (0, 0, 1)
    assert level_of(np.full(50, -0.1))["dc_offset"] == pytest.approx(-0.1)
    assert level_of([1.0, -1.0, 0.5, 32_767 / 32_768])["clipped_share"] == 0.75
    silent = {"peak_dbfs": SILENT_DBFS, "rms_dbfs": SILENT_DBFS}
    assert level_of(np.zeros(100)) == {**silent, "clipped_share": 0.0, "dc_offset": 0.0}
