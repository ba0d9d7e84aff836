"""``repartition``: the same rows in other files, in order, wherever they go."""

from __future__ import annotations

import itertools
import json
import re
import resource
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechmill.cli.repartition import repartition as command
from speechmill.dataset.layout import data_key
from speechmill.dataset.reader import stored_schema
from speechmill.dataset.schema import to_parquet, utterances_to_table
from speechmill.errors import DatasetError, JobError
from speechmill.export import repartition as module
from speechmill.export.files import Place
from speechmill.export.repartition import _files_of
from speechmill.records import Part
from speechmill.storage import StoreOptions, open_store
from tests.support.corpus import memory, write
from tests.support.memory import AnonymousPeak
from tests.support.repartitions import (
    SCHEMA,
    all_rows,
    files,
    make_sink,
    run,
    sink,
    tables,
    utterance,
)
from tests.support.services import SeaweedFS


@pytest.mark.parametrize("rows_per_file", [3, 1000])
@pytest.mark.parametrize(
    "by", [["language"], ["language", "folder_name"], ["sample_rate"], ["folder_name", "channels"]]
)
def test_every_row_is_there_once_in_order_among_its_like(by: list[str], rows_per_file: int) -> None:
    out = memory()
    report = run(sink(), out, by, rows_per_file=rows_per_file)
    found = tables(open_store(out))
    rows = all_rows(sink())
    assert (report.rows, report.files, report.resumed) == (rows.num_rows, len(found), 0)
    together = pa.concat_tables(list(found.values()))
    key = [("file_name", "ascending")]
    assert together.sort_by(key).equals(rows.sort_by(key))
    place = {name: i for i, name in enumerate(rows["file_name"].to_pylist())}
    values = set(zip(*(rows[name].to_pylist() for name in by), strict=True))
    assert report.partitions == len(values) == len({key.rpartition("/")[0] for key in found})
    by_directory: dict[str, list[int]] = {}
    for key_, table in sorted(found.items()):
        assert table.schema.equals(stored_schema(open_store(sink())), check_metadata=True)
        assert len({tuple(row[name] for name in by) for row in table.to_pylist()}) == 1
        directory, _, name = key_.rpartition("/")
        number, count = map(int, re.findall(r"part-(\d{5})-of-(\d{5})\.parquet", name)[0])
        assert table.num_rows == rows_per_file or number == count - 1
        order = by_directory.setdefault(directory, [])
        order += [place[n] for n in table["file_name"].to_pylist()]
        assert order == sorted(order)


@pytest.mark.slow
def test_the_files_are_the_same_each_time_wherever_they_go(
    tmp_path: Path,
    object_store: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in object_store.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(variable, value)
    first = memory()
    run(sink(), first, rows_per_file=7)
    expected = files(open_store(first))
    monkeypatch.setattr(module, "UNIT_BYTES", 2_000)  # other units, many of them
    bucket = Place(f"s3://dst/{tmp_path.name}/out", StoreOptions(profile="r2"))
    for out in (Place(memory()), Place(str(tmp_path / "new" / "out")), bucket):
        run(sink(), out, rows_per_file=7)
        store = out.open()
        assert files(store) == expected
        state = json.loads(store.get("_speechmill/repartition.json").data)
        assert (state["complete"], state["files"]) == (True, len(expected))
        # Nothing else is there, but for the lock of a local folder.
        others = {o.key for o in store.list()} - expected.keys()
        assert others <= {"_speechmill/repartition.json", "_speechmill/lock"}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 60))
def test_files_share_out_the_rows_without_gap_or_overlap(counts: list[int], most: int) -> None:
    made = list(_files_of("x", list(enumerate(counts)), most))
    assert [file.rows for file in made[:-1]] == [most] * (len(made) - 1)
    assert 1 <= made[-1].rows <= most
    taken = [
        (piece.source, row)
        for file in made
        for piece in file.pieces
        for row in range(piece.skip, piece.skip + piece.count)
    ]
    assert taken == [(part, row) for part, count in enumerate(counts) for row in range(count)]


@pytest.mark.slow
def test_thousands_of_groups_take_little_memory_and_few_open_files() -> None:
    source, out = memory(), memory()
    make_sink(source, [(f"p{i}", 0, 250) for i in range(8)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 64, hard)
    )
    try:
        with AnonymousPeak() as peak:
            report = run(source, out, ["language", "file_name"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.rows, report.files, report.partitions) == (2_000, 2_000, 2_000)
    assert sum(1 for _ in open_store(out).list("data")) == 2_000
    assert peak.grown_bytes < 220 * 1024**2


def test_memory_does_not_grow_with_the_dataset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each part holds 8 MB that do not compress, and belongs to each of two files."""
    import numpy as np

    from speechmill.export import files as rewriting

    monkeypatch.setattr(module, "UNIT_BYTES", 8 * 1024**2)
    monkeypatch.setattr(rewriting, "ROW_GROUP_BYTES", 4 * 1024**2)
    source, out = str(tmp_path / "sink"), str(tmp_path / "out")
    store = make_sink(source, [("p", 0, 1)])
    noise = np.random.default_rng(1)
    for index in range(1, 25):
        some = [utterance("p", 1_000 * index + i) for i in range(8)]
        table = utterances_to_table(some, SCHEMA, "r1")
        texts = pa.array([noise.bytes(500_000).hex() for _ in some])
        table = table.set_column(table.column_names.index("transcription"), "transcription", texts)
        store.put(data_key(Part("p", index, 99)), to_parquet(table.cast(SCHEMA)))
    with AnonymousPeak() as peak:
        report = run(source, out, ["sample_rate"], rows_per_file=1_000)
    assert (report.files, report.rows) == (2, 193)
    assert peak.grown_bytes < 150 * 1024**2  # of 200 MB in memory, twice


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (["speaker"], "'speaker' is no column; there are folder_name, file_name"),
        (["duration_s"], "'duration_s' cannot be grouped by"),
        (["token"], "'token' cannot be grouped by"),
        (["language", "language"], "once"),
        ([], "name each column"),
    ],
)
def test_columns_that_make_no_sense_are_refused_before_anything_is_written(
    by: list[str], why: str
) -> None:
    out = memory()
    with pytest.raises(JobError, match=why):
        run(sink(), out, by)
    assert not list(open_store(out).list())


def test_out_is_neither_within_the_sink_nor_around_it(tmp_path: Path) -> None:
    url = memory()
    make_sink(f"{url}/in/sink", [("p", 0, 2)])
    for out in (f"{url}/in/sink", f"{url}/in/sink/data", f"{url}/in/sink/new", f"{url}/in", url):
        with pytest.raises(JobError, match="give another place"):
            run(f"{url}/in/sink", out)
    run(f"{url}/in/sink", f"{url}/in/sink2")


def test_an_out_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    out = write(tmp_path, {"notes.txt": b"mine"})
    with pytest.raises(DatasetError, match=r"not empty \(notes\.txt"):
        run(sink(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_out_of_other_columns_or_of_another_state_of_the_sink_is_left_alone() -> None:
    source, out = memory(), memory()
    store = make_sink(source, [("p", 0, 9), ("q", 0, 9)])
    run(source, out, ["language"])
    before = files(open_store(out))
    with pytest.raises(DatasetError, match=r"holds the rows of .* by language, 10000 a file"):
        run(source, out, ["folder_name"])
    with pytest.raises(DatasetError, match="something else"):
        run(source, out, ["language"], rows_per_file=2)
    table = utterances_to_table([utterance("q", 99)], SCHEMA, "r1")
    store.put(data_key(Part("q", 0, 99)), to_parquet(table))
    with pytest.raises(DatasetError, match="the dataset has changed"):
        run(source, out, ["language"])
    assert files(open_store(out)) == before


def test_columns_that_older_parts_lack_are_null() -> None:
    source, out = memory(), memory()
    store = make_sink(source, [("p", 0, 4), ("q", 0, 4)])
    old = data_key(Part("p", 0, 99))
    table = pq.read_table(pa.BufferReader(store.get(old).data), partitioning=None)
    time.sleep(0.01)
    newer = data_key(Part("q", 0, 99))
    store.put(old, to_parquet(table.drop_columns(["language", "words"])))
    time.sleep(0.01)
    store.put(newer, store.get(newer).data)
    run(source, out, ["language"])
    found = tables(open_store(out))
    nulls = [t for key, t in found.items() if "=_null/" in key]
    assert {t.schema for t in found.values()} == {SCHEMA}
    assert set(itertools.chain(*(t["folder_name"].to_pylist() for t in nulls))) >= {"p"}
    assert sum(t.num_rows for t in found.values()) == 8


def test_a_column_of_two_types_is_an_error() -> None:
    source = memory()
    store = make_sink(source, [("p", 0, 4), ("q", 0, 4)])
    old = data_key(Part("p", 0, 99))
    table = pq.read_table(pa.BufferReader(store.get(old).data), partitioning=None)
    other = table.set_column(3, "token", pa.nulls(4, pa.list_(pa.list_(pa.float32()))))
    store.put(old, to_parquet(other))
    time.sleep(0.01)
    newer = data_key(Part("q", 0, 99))
    store.put(newer, store.get(newer).data)
    with pytest.raises(DatasetError, match="has the column token as"):
        run(source, memory(), ["language"])


def test_a_sink_without_rows_or_without_anything_is_an_error() -> None:
    source = memory()
    make_sink(source, [])
    with pytest.raises(DatasetError, match="no rows"):
        run(source, memory())
    with pytest.raises(DatasetError, match="no dataset"):
        run(memory(), memory())


def test_the_command_takes_columns_by_commas_and_says_what_it_wrote(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    out = str(tmp_path / "out")
    result = CliRunner().invoke(
        app, [sink(), out, "--by", "language,folder_name", "--rows-per-file", "4"]
    )
    assert result.exit_code == 0, result.output
    rows = all_rows(sink()).num_rows
    assert re.search(rf"to do: {rows} rows in \d+ files", result.output)
    assert f"({rows} rows)" in result.output
    assert f"{out}/data" in result.output
    assert Path(out, "data", "by_language=en", "by_folder_name=p225").is_dir()
    assert Path(out, "data", "by_language=en", "by_folder_name=007_").is_dir()
