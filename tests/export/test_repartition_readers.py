"""What other programs read of repartitioned files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from tests.support.repartitions import (
    all_rows,
    run,
    sink,
)
from tests.support.spark_sessions import spark_session

Rows = list[dict[str, Any]]


def by_pandas(path: str) -> Rows:
    import pandas as pd

    frame = pd.read_parquet(path)
    found: Rows = frame.astype({"language": object}).to_dict("records")
    return found


def by_pyarrow(path: str) -> Rows:
    rows: Rows = pq.read_table(path).to_pylist()
    return rows


def by_pyarrow_dataset(path: str) -> Rows:
    table = pads.dataset(path, partitioning="hive").to_table()
    assert {"by_language", "by_folder_name"} <= set(table.column_names)
    rows: Rows = table.to_pylist()
    return rows


def by_polars(path: str) -> Rows:
    import polars as pl

    return pl.read_parquet(path).to_dicts()


def by_duckdb(path: str) -> Rows:
    import duckdb

    found = duckdb.sql(f"SELECT * FROM '{path}/**/*.parquet'")
    assert found is not None
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_dask(path: str) -> Rows:
    import dask
    import dask.dataframe

    with dask.config.set(scheduler="synchronous"):
        frame = dask.dataframe.read_parquet(path).compute()
    rows: Rows = frame.astype({"language": object}).to_dict("records")
    return rows


def by_datasets(path: str) -> Rows:
    import datasets

    datasets.disable_progress_bars()
    cache = f"{path}-cache"
    return list(
        datasets.load_dataset(
            "parquet", data_files=f"{path}/**/*.parquet", split="train", cache_dir=cache
        )
    )


def by_spark(path: str) -> Rows:
    frame = spark_session().read.parquet(path)
    assert dict(frame.dtypes)["token"] == "array<array<smallint>>"
    return [row.asDict(recursive=True) for row in frame.collect()]


READERS = [
    *(by_pandas, by_pyarrow, by_pyarrow_dataset, by_polars),
    *(by_duckdb, by_dask, by_datasets, by_spark),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("out") / "new")
    run(sink(), out, rows_per_file=5)
    return out


@pytest.mark.parametrize(
    "read",
    READERS,
    ids=lambda read: read.__name__,
)
def test_readers_take_the_whole_of_it(read: Callable[[str], Rows], here: str) -> None:
    found = {row["file_name"]: row for row in read(f"{here}/data")}
    expected = all_rows(sink()).to_pylist()
    assert len(found) == len(expected)
    for wanted in expected:
        row = found[wanted["file_name"]]
        language = row["language"]
        assert (language if isinstance(language, str) else None) == wanted["language"]
        for name in ("folder_name", "transcription", "sample_rate", "source_size"):
            assert row[name] == wanted[name]
        assert [list(codes) for codes in row["token"]] == wanted["token"]


def test_directories_are_pruned_by(here: str) -> None:
    dataset = pads.dataset(f"{here}/data", partitioning="hive")
    some = dataset.to_table(filter=pads.field("by_language") == "yue")
    assert set(some["language"].to_pylist()) == {"yue"}
    fragments = list(dataset.get_fragments(pads.field("by_language") == "yue"))
    assert fragments
    assert all("/by_language=yue/" in fragment.path for fragment in fragments)
