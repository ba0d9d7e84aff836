"""``repartition``: the same rows in other files, however they are read, stopped and begun again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import speechmill
from speechmill.cli.repartition import repartition as command
from speechmill.dataset.layout import data_key
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.schema import row_schema, to_parquet, utterances_to_table
from speechmill.errors import DatasetError, EngineError, JobError, ReplacedError
from speechmill.export import repartition as module
from speechmill.export.dask import on_dask
from speechmill.export.files import Place, Unit, in_threads
from speechmill.export.repartition import RepartitionReport, _files_of
from speechmill.records import Codes, Part, Recording, Transcript, Utterance
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from tests.support.corpus import build, memory, wav, write
from tests.support.memory import AnonymousPeak
from tests.support.services import SeaweedFS
from tests.support.spark_sessions import spark_session

LANGUAGES = ["en", "de", None, "yue", "en", ""]
FOLDERS = ["p225", "007", "225", "a=b", "50%", "Zoë", "x" * 300, "..", "true", "2023-01-01"]
TOKENIZERS = (FakeTokenizer(),)
SCHEMA = row_schema([column_of(t) for t in TOKENIZERS])
numbers = itertools.count()


def utterance(folder: str, number: int) -> Utterance:
    """A row whose values differ from those of all others."""
    name = f"{folder}/{number:05d}.wav"
    codes = (pa.array(range(4 * 3)).to_numpy().reshape(4, 3) + number % 1000).astype("int16")
    return Utterance(
        recording=Recording(name, number, f"tag-{number}", 1_700_000_000_000_000 + number),
        folder_name=folder,
        start_s=0.0,
        end_s=1.0 + number,
        sample_rate=(8_000, 16_000)[number % 2],
        channels=1,
        transcript=Transcript(f"text {name}", language=LANGUAGES[number % len(LANGUAGES)]),
        codes=(Codes(codes),),
    )


def make_sink(url: str, rows: Sequence[tuple[str, int, int]]) -> Store:
    """A sink with parts of (folder, part's number, rows), made without audio."""
    build(memory({"x/1.wav": wav()}), url)
    store = open_store(url)
    for part in list_parts(store):
        store.delete(part.key)
    count = itertools.count()
    for folder, index, num_rows in rows:
        table = utterances_to_table(
            [utterance(folder, next(count)) for _ in range(num_rows)], SCHEMA, "r1"
        )
        store.put(data_key(Part(folder, index, 99)), to_parquet(table))
    return store


@functools.cache
def sink() -> str:
    url = memory()
    sizes = [(folder, index, 7 + i + index) for i, folder in enumerate(FOLDERS) for index in (0, 1)]
    make_sink(url, sizes)
    return url


def run(
    sink: str, out: str | Place, by: Sequence[str] = ("language", "folder_name"), **options: Any
) -> RepartitionReport:
    place = out if isinstance(out, Place) else Place(out)
    return module.repartition(Place(sink), place, by, **{"run": in_threads, **options})


def files(store: Store) -> dict[str, bytes]:
    return {o.key: store.get(o.key).data for o in store.list("data")}


def tables(store: Store) -> dict[str, pa.Table]:
    found = {}
    for key, data in files(store).items():
        found[key] = pq.read_table(pa.BufferReader(data), partitioning=None)
    return found


def all_rows(url: str) -> pa.Table:
    return speechmill.open_dataset(url).to_table()


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


def test_what_was_stopped_goes_on_and_comes_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = memory(), memory()
    run(sink(), whole, rows_per_file=2)
    monkeypatch.setattr(module, "UNIT_BYTES", 1)
    asked = itertools.count()
    first = run(sink(), out, rows_per_file=2, stop=lambda: next(asked) > 3)
    assert first.stopped
    assert 0 < first.rows < all_rows(sink()).num_rows
    state = json.loads(open_store(out).get("_speechmill/repartition.json").data)
    assert state["complete"] is False
    second = run(sink(), out, rows_per_file=2)
    assert not second.stopped
    assert second.resumed > 0
    assert first.rows + second.rows == all_rows(sink()).num_rows
    assert files(open_store(out)) == files(open_store(whole))
    third = run(sink(), out, rows_per_file=2)
    assert (third.rows, third.files) == (0, 0)


def start(*arguments: str, unit_bytes: int = module.UNIT_BYTES) -> subprocess.Popen[str]:
    script = (
        "import typer; from speechmill.export import repartition; "
        f"repartition.UNIT_BYTES = {unit_bytes}; "
        "from speechmill.cli.repartition import repartition as command; typer.run(command)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def signal_after(process: subprocess.Popen[str], number: int, out: str, num_files: int) -> str:
    """Signal the process once it has written so many files. Returns what it has said."""
    deadline = time.monotonic() + 60
    while sum(1 for _ in Path(out).glob("data/*/*.parquet")) < num_files:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=60)[0]


def test_what_was_killed_goes_on_and_comes_out_the_same(tmp_path: Path) -> None:
    source, whole, out = (str(tmp_path / name) for name in ("sink", "whole", "out"))
    make_sink(source, [(f"p{i}", 0, 40) for i in range(8)])
    run(source, whole, ["folder_name"], rows_per_file=1)
    arguments = (source, out, "--by", "folder_name", "--rows-per-file", "1")
    signal_after(start(*arguments), signal.SIGKILL, out, 20)
    written = sum(1 for _ in Path(out).glob("data/*/*.parquet"))
    assert written < 320
    said, _ = (again := start(*arguments)).communicate(timeout=120)
    assert again.returncode == 0, said
    assert re.search(r"to do: \d+ rows in \d+ files; \d+ files are there from before", said)
    assert files(open_store(out)) == files(open_store(whole))
    assert not list(Path(out).glob(".*"))


def test_a_signal_stops_it_and_it_says_how_to_go_on(tmp_path: Path) -> None:
    source, out = str(tmp_path / "sink"), str(tmp_path / "out")
    make_sink(source, [(f"p{i}", 0, 40) for i in range(8)])
    process = start(source, out, "--by", "folder_name", "--rows-per-file", "1", unit_bytes=1)
    said = signal_after(process, signal.SIGTERM, out, 5)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert re.search(r"\d+ rows were written; stopped; the same command goes on", said)
    state = json.loads(Path(out, "_speechmill", "repartition.json").read_text())
    assert state["complete"] is False


@pytest.mark.slow
def test_thousands_of_groups_take_little_memory_and_few_open_files() -> None:
    source, out = memory(), memory()
    make_sink(source, [(f"p{i}", 0, 400) for i in range(8)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 64, hard)
    )
    try:
        with AnonymousPeak() as peak:
            report = run(source, out, ["language", "file_name"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.rows, report.files, report.partitions) == (3_200, 3_200, 3_200)
    assert sum(1 for _ in open_store(out).list("data")) == 3_200
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


@pytest.mark.parametrize("gone", [False, True])
def test_a_part_that_is_replaced_meanwhile_is_an_error_not_a_mixture(gone: bool) -> None:
    source, out = memory(), memory()
    store = make_sink(source, [("p", 0, 9), ("q", 0, 9)])

    def meddle(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
        if gone:
            store.delete(data_key(Part("q", 0, 99)))
        else:
            table = utterances_to_table([utterance("q", 7)], SCHEMA, "r1")
            store.put(data_key(Part("q", 0, 99)), to_parquet(table))
        yield from in_threads(units, stop)

    with pytest.raises(ReplacedError, match="empty OUT and begin anew"):
        run(source, out, run=meddle)
    state = json.loads(open_store(out).get("_speechmill/repartition.json").data)
    assert state["complete"] is False


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


@pytest.fixture
def on_disk(tmp_path: Path) -> str:
    """A sink that other processes can read."""
    url = str(tmp_path / "sink")
    make_sink(url, [(folder, index, 12) for folder in FOLDERS for index in (0, 1)])
    return url


def dask_workers() -> set[psutil.Process]:
    """The worker processes of Dask below this one."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.add(one)
    return found


@pytest.mark.slow
def test_dask_writes_the_same_files_also_when_its_workers_are_killed(
    on_disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "UNIT_BYTES", 2_000)  # many units
    expected = memory()
    run(on_disk, expected, ["language"], rows_per_file=2)
    before = dask_workers()
    killed: set[psutil.Process] = set()

    def kill_once(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
        assert len(units) > 20
        for rows in on_dask(workers=2)(units, stop):
            if rows and not killed:
                killed.update(dask_workers() - before)
                for worker in killed:
                    worker.kill()
            yield rows

    out = str(tmp_path / "out")
    report = run(on_disk, out, ["language"], rows_per_file=2, run=kill_once)
    assert len(killed) == 2
    assert (report.rows, report.stopped) == (240, False)
    assert files(open_store(out)) == files(open_store(expected))
    assert capfd.readouterr() == ("", "")
    assert dask_workers() == before


def test_the_command_tells_dask_from_threads(on_disk: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    given = [on_disk, str(tmp_path / "out"), "--by", "language"]
    result = CliRunner().invoke(app, [*given, "--workers", "2"])
    assert (result.exit_code, "for --engine dask" in result.output) == (2, True)
    result = CliRunner().invoke(app, [*given, "--engine", "dask", "--address", "ray://127.0.0.1:1"])
    assert isinstance(result.exception, JobError)
    assert "is no Dask scheduler's" in str(result.exception)


@pytest.mark.slow
def test_errors_on_dask_are_those_of_the_work_and_an_end_of_dask_is_one_line(
    on_disk: str, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    here = LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    )
    with here, Client(here, set_as_default=False) as client:
        write_there = on_dask(client)

        def meddle(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
            store = open_store(on_disk)
            store.put(data_key(Part("p225", 0, 99)), b"something else")
            yield from write_there(units, stop)

        with pytest.raises(ReplacedError, match="empty OUT and begin anew"):
            run(on_disk, str(tmp_path / "out"), ["language"], run=meddle)
        assert client.status == "running"
        client.close()
        with pytest.raises(EngineError, match="the Dask scheduler has gone"):
            list(write_there([Unit(Place(""), Place(""), (), (), (), b"")], lambda: False))
