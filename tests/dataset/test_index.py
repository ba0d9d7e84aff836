"""What a sink held when it was opened, and finding it again after parts were replaced."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from speechmill.dataset.index import Index, check_columns, open_index, read_rows
from speechmill.dataset.layout import data_key
from speechmill.dataset.schema import to_parquet
from speechmill.errors import DatasetError, JobError, ReplacedError
from speechmill.records import Part, Recording
from speechmill.storage import Store, open_store
from tests.support.corpus import build, memory, wav, write
from tests.support.rows import rows

numbers = itertools.count()
KEY = data_key(Part("p1", 0, 1))


def sink_with(names: list[str], version: str = "e1") -> tuple[Store, Index]:
    """A sink whose only part has these recordings."""
    store = open_store(f"memory://index-{next(numbers)}")
    build(memory({"p1/a.wav": wav()}), store.url)
    put(store, names, version)
    return store, open_index(store)


def put(store: Store, names: list[str], version: str = "e1") -> None:
    table = rows([Recording(f"p1/{n}.wav", 1, version, 1) for n in names])
    store.put(KEY, to_parquet(table))


def test_an_index_has_the_rows_that_fulfil_a_condition(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in", {f"p{s}/{i}.wav": wav(i, 0.1 * (i + 1)) for s in (1, 2) for i in range(5)}
    )
    sink = str(tmp_path / "out")
    build(source, sink)
    store = open_store(sink)
    every = open_index(store)
    assert every.num_rows == 10
    assert sorted(np.round(every.durations_s, 3).tolist()) == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3,
                                                              0.4, 0.4, 0.5, 0.5]  # fmt: skip
    assert every.frame_rate("token") == 50.0
    assert every.frame_rate("transcription") is None
    by_text = open_index(store, "folder_name = 'p2' AND duration_s > 0.25")
    field = (pc.field("folder_name") == "p2") & (pc.field("duration_s") > 0.25)
    for index in (by_text, open_index(store, field)):
        assert len(index.parts) == 1
        table = read_rows(store, index, 0, ["file_name", "token"])
        assert table["file_name"].to_pylist() == [f"p2/{i}.wav" for i in (2, 3, 4)]
    assert open_index(store, "folder_name = 'p3'").num_rows == 0


def test_what_cannot_be_indexed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no dataset"):
        open_index(open_store(str(tmp_path)))
    store, index = sink_with(["a"])
    with pytest.raises(JobError, match="did you mean folder_name"):
        open_index(store, "folder_nam = 'p1'")
    with pytest.raises(JobError, match="does not fit the rows"):
        open_index(store, pc.field("folder_name") == 5)
    with pytest.raises(JobError, match="no column 'tokens'"):
        check_columns(index.schema, ["token", "tokens"])
    with pytest.raises(JobError, match="no columns"):
        check_columns(index.schema, [])


def test_a_part_replaced_since_gives_the_same_rows() -> None:
    store, index = sink_with(["b", "d", "f"])
    put(store, ["a", "b", "c", "d", "e", "f"], "e2")
    table = read_rows(store, index, 0, ["transcription", "file_name"])
    assert table["file_name"].to_pylist() == ["p1/b.wav", "p1/d.wav", "p1/f.wav"]
    assert table["transcription"][0].as_py() == "text of p1/b.wav e2"
    assert table.column_names == ["transcription", "file_name"]


def test_rows_that_are_gone_are_an_error() -> None:
    store, index = sink_with(["a", "b", "c"])
    put(store, ["b"])
    with pytest.raises(ReplacedError, match=r"2 rows of data/folder=p1.*open it anew"):
        read_rows(store, index, 0, ["file_name"])
    store.delete(KEY)
    with pytest.raises(ReplacedError, match="3 rows"):
        read_rows(store, index, 0, ["file_name"])


def test_a_column_that_a_part_lacks_is_null() -> None:
    store, index = sink_with(["a"])
    newer = rows([Recording("p2/a.wav", 1, "e", 1)], folder_name="p2")
    newer = newer.append_column("token_more", pa.array([[[1]]], pa.list_(pa.list_(pa.int16()))))
    store.put(data_key(Part("p2", 0, 1)), to_parquet(newer))
    index = open_index(store)
    values = {
        part.key: read_rows(store, index, i, ["token_more"])["token_more"].to_pylist()
        for i, part in enumerate(index.parts)
    }
    assert values == {KEY: [None], data_key(Part("p2", 0, 1)): [[[1]]]}
    only = open_index(store, "token_more IS NOT NULL")
    assert [p.key for p in only.parts] == [data_key(Part("p2", 0, 1))]
