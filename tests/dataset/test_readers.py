"""What others read from ``SINK/data``, each by its usual line: the rows, rightly typed."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import speechmill
from speechmill.dataset.commit import commit
from speechmill.dataset.layout import data_key
from speechmill.dataset.schema import row_schema, to_parquet, utterances_to_table
from speechmill.records import Codes, Part, Recording, Segment, Transcript, Utterance, Word
from speechmill.storage import open_store
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.tokenizers.mfcc import MfccTokenizer
from tests.support.corpus import build, memory, samples, wav
from tests.support.rows import rows

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dataset.md"

FOLDERS = [
    *("225", "007", "2023-01-01", "a=b", "50%", "Zoë", "p225", "..", ".", "...", "a/b"),
    *("a b #+'\"東?&", "x" * 300, "a" + "東" * 299, "%41", "true", "1e5", "nan", "null", "-"),
    *("__HIVE_DEFAULT_PARTITION__", "99999999999", "folder=x"),
]
BY_HAND = "by hand"  # the folder of rows with what the fake transcriber never gives
TOKENIZERS = (MfccTokenizer(), FakeTokenizer())

SEGMENT = {"start_s": "f8", "end_s": "f8", "text": "s", "avg_logprob": "f4", "no_speech_prob": "f4"}
WORD = {"word": "s", "start_s": "f8", "end_s": "f8", "probability": "f4"}
# Every column and its type, in a notation that each reader's own types are put into.
TYPES: dict[str, Any] = {
    "folder_name": "s",
    "file_name": "s",
    "transcription": "s",
    "token": [["f4"]],
    "token_fake": [["i2"]],
    "start_s": "f8",
    "end_s": "f8",
    "duration_s": "f8",
    "sample_rate": "i4",
    "channels": "i4",
    "channel": "i4",
    "language": "s",
    "language_probability": "f4",
    "language_heard": "s",
    "avg_logprob": "f4",
    "no_speech_prob": "f4",
    "compression_ratio": "f4",
    "repetition": "f4",
    "temperature": "f4",
    "window_s": "f4",
    "voiced_s": "f4",
    "chars_per_voiced_s": "f4",
    "round_trip_cer": "f4",
    "flags": ["s"],
    "source_size": "i8",
    "source_etag": "s",
    "source_modified": "t",
    "recipe": "s",
    "fetch_s": "f4",
    "decode_s": "f4",
    "transcribe_s": "f4",
    "tokenize_s": "f4",
    "segments": [SEGMENT],
    "words": [WORD],
}
NESTED = [name for name, of_type in TYPES.items() if isinstance(of_type, list)]
FLAT = [name for name in TYPES if name not in NESTED]


def files() -> dict[str, bytes]:
    """Two recordings a folder, one of them silent now and then."""
    return {
        f"in/{folder}~{k}.wav": wav(2 * i + k, silent=k == 1 and i % 3 == 0)
        for i, folder in enumerate(FOLDERS)
        for k in range(2)
    }


def by_hand() -> list[Utterance]:
    """Words and segments that are there, that are empty, and that are null."""
    cases: list[tuple[tuple[Segment, ...], tuple[Word, ...] | None]] = [
        ((Segment(0.0, 1.0, "hm", -0.5, 0.1),), (Word("hm", 0.0, 1.0, 0.5),)),
        ((), ()),
        ((), None),
    ]
    return [
        Utterance(
            recording=Recording(f"by hand/{i}.wav", 10, f"tag-{i}", 1_700_000_000_000_000 + i),
            folder_name=BY_HAND,
            start_s=0.0,
            end_s=1.0,
            sample_rate=8_000,
            channels=2,
            transcript=Transcript("hm" if words else "", segments=segments, words=words),
            codes=(
                Codes(np.full((20, i), i, np.float32)),
                Codes(np.full((4, i), 1_000 + i, np.int16)),
            ),
            flags=("odd",) * i,
            channel=i,
        )
        for i, (segments, words) in enumerate(cases)
    ]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("sink"))
    bad = {"in/225~9.wav": b"no audio at all"}
    report = build(memory(files() | bad), root, folder=r"^in/(.+)~\d", tokenizer=("mfcc", "fake"))
    assert (report.rows, report.failed) == (2 * len(FOLDERS), 1)
    commit(
        open_store(root),
        Part(BY_HAND, 0, 1),
        utterances_to_table(
            by_hand(), row_schema([column_of(t) for t in TOKENIZERS]), report.recipe
        ),
        [],
        recipe=report.recipe,
        replaces={},
        is_current=lambda: True,
    )
    return root


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    """By file name: folder_name, tokens, segments and words, not from any file."""
    found: dict[str, dict[str, Any]] = {}
    for i, (name, data) in enumerate(files().items()):
        waveform = samples(i).astype(np.float32) / np.float32(32_768)
        waveform *= np.float32(data != wav(i, silent=True))
        mfcc, codes = (t.encode([waveform])[0].values for t in TOKENIZERS)
        folder = re.findall("in/(.+)~", name)[0]
        found[name] = {"folder_name": folder, "token": mfcc, "token_fake": codes, "words": None}
    for u in by_hand():
        words = u.transcript.words
        found[u.recording.file_name] = {
            "folder_name": BY_HAND,
            "token": u.codes[0].values,
            "token_fake": u.codes[1].values,
            "words": None if words is None else [w.word for w in words],
            "segments": [s.text for s in u.transcript.segments],
        }
    return found


def check(found: Sequence[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> None:
    """That the rows are those that are expected, each once."""
    assert sorted(row["file_name"] for row in found) == sorted(expected)
    for row in found:
        wanted = expected[row["file_name"]]
        assert row["folder_name"] == wanted["folder_name"]
        for column in ("token", "token_fake"):
            values = wanted[column]
            read = np.array([np.asarray(codes) for codes in row[column]], values.dtype)
            np.testing.assert_allclose(read.reshape(values.shape), values, rtol=1e-5, atol=1e-4)
        words = row["words"]
        assert (None if words is None else [w["word"] for w in words]) == wanted["words"]
        texts = [s["text"] for s in row["segments"]]
        assert texts == wanted.get("segments", [row["transcription"]] if texts else [])


def of_arrow(of_type: pa.DataType) -> Any:
    if pa.types.is_list(of_type) or pa.types.is_large_list(of_type):
        return [of_arrow(of_type.value_type)]
    if pa.types.is_struct(of_type):
        return {field.name: of_arrow(field.type) for field in of_type}
    if of_type == pa.timestamp("us", "UTC"):
        return "t"
    strings = (pa.string(), pa.large_string())
    return "s" if of_type in strings else np.dtype(of_type.to_pandas_dtype()).str[1:]


def typed(schema: pa.Schema) -> dict[str, Any]:
    return {f.name: of_arrow(f.type) for f in schema if f.name != "folder"}


Read = Callable[[str], tuple[dict[str, Any], list[dict[str, Any]]]]


def by_pyarrow(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    table = pq.read_table(path)
    return typed(table.schema), table.to_pylist()


def by_pyarrow_dataset(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    table = pads.dataset(path, partitioning="hive").to_table()
    assert "folder" in table.column_names
    return typed(table.schema), table.to_pylist()


def by_pyarrow_dataset_without_partitioning(
    path: str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    table = pads.dataset(path).to_table()
    return typed(table.schema), table.to_pylist()


def by_open_dataset(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    table = speechmill.open_dataset(str(Path(path).parent)).to_table()
    return typed(table.schema), table.to_pylist()


def by_polars(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    frame = pl.read_parquet(path)
    return of_polars(frame), frame.to_dicts()


def by_polars_lazily(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    frame = pl.scan_parquet(f"{path}/**/*.parquet").collect()
    return of_polars(frame), frame.to_dicts()


BYTES = {"16": "2", "32": "4", "64": "8"}


def of_polars(frame: pl.DataFrame) -> dict[str, Any]:
    def plain(of_type: Any) -> Any:
        if isinstance(of_type, pl.List):
            return [plain(of_type.inner)]
        if isinstance(of_type, pl.Struct):
            return {field.name: plain(field.dtype) for field in of_type.fields}
        if of_type == pl.Datetime("us", "UTC"):
            return "t"
        return "s" if of_type == pl.String else str(of_type)[0].lower() + BYTES[str(of_type)[-2:]]

    return {name: plain(of_type) for name, of_type in frame.schema.items() if name != "folder"}


def by_duckdb(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = duckdb.sql(f"SELECT * FROM '{path}/**/*.parquet'")
    assert found is not None

    def plain(of_type: Any) -> Any:
        if of_type.id == "list":
            return [plain(of_type.children[0][1])]
        if of_type.id == "struct":
            return {name: plain(inner) for name, inner in of_type.children}
        return {
            "varchar": "s",
            "timestamp with time zone": "t",
            "double": "f8",
            "float": "f4",
            "bigint": "i8",
            "integer": "i4",
            "smallint": "i2",
        }[of_type.id]

    types = {n: plain(t) for n, t in zip(found.columns, found.types, strict=True) if n != "folder"}
    return types, [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_hugging_face_files(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return hugging_face("parquet", data_files=f"{path}/**/*.parquet")


def by_hugging_face_dir(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return hugging_face("parquet", data_dir=path)


def by_hugging_face_path(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return hugging_face(path)


def hugging_face(name: str, **where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import datasets

    dataset = datasets.load_dataset(name, split="train", **where)
    return typed(dataset.features.arrow_schema), list(dataset)


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hugging Face's libraries may ask nobody, and keep what they cache among the test's files."""
    import datasets.config
    import huggingface_hub.constants

    def refuse(_: socket.socket, address: Any) -> None:
        if not isinstance(address, str | bytes):
            raise PermissionError(f"connecting to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


READERS = [
    by_pyarrow,
    by_pyarrow_dataset,
    by_pyarrow_dataset_without_partitioning,
    by_open_dataset,
    by_polars,
    by_polars_lazily,
    by_duckdb,
    by_hugging_face_files,
    by_hugging_face_dir,
    by_hugging_face_path,
]


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_column_is_read_with_its_type_and_values(
    read: Read, sink: str, expected: Mapping[str, Any]
) -> None:
    types, found = read(f"{sink}/data")
    assert types == TYPES
    check(found, expected)


# pandas and Dask have one type for all that is no number.
def of_pandas(dtypes: Mapping[str, Any]) -> dict[str, Any]:
    def plain(of_type: Any) -> str:
        if isinstance(of_type, pd.DatetimeTZDtype):
            return f"t {of_type.unit} {of_type.tz}"
        if isinstance(of_type, pd.StringDtype):
            return "s"
        kind: str = np.dtype(getattr(of_type, "numpy_dtype", of_type)).str[1:]
        return kind.replace("O", "object")

    return {name: plain(of_type) for name, of_type in dict(dtypes).items() if name != "folder"}


PANDAS_TYPES = {
    name: "object" if isinstance(t, list) or t == "s" else t.replace("t", "t us UTC")
    for name, t in TYPES.items()
} | {"channel": "f8"}  # NumPy's whole numbers have no null


def test_pandas_reads_every_column(sink: str, expected: Mapping[str, Any]) -> None:
    frame = pd.read_parquet(f"{sink}/data")
    assert of_pandas(frame.dtypes) == PANDAS_TYPES
    check(frame.to_dict("records"), expected)


def test_dask_reads_every_column(sink: str, expected: Mapping[str, Any]) -> None:
    import dask
    import dask.dataframe

    with dask.config.set(scheduler="synchronous"):
        lazy = dask.dataframe.read_parquet(f"{sink}/data")
        frame = lazy.compute()
    strings = {name: "s" for name, t in TYPES.items() if t == "s"}
    assert of_pandas(frame.dtypes) == {**PANDAS_TYPES, **strings}
    assert of_pandas(lazy.dtypes).keys() == PANDAS_TYPES.keys()
    check(frame.to_dict("records"), expected)


@pytest.mark.parametrize("alone", [False, True], ids=["whole folder", "through pandas"])
def test_fastparquet_reads_the_flat_columns(
    sink: str, expected: Mapping[str, Any], alone: bool
) -> None:
    import fastparquet

    if alone:
        frame = pd.read_parquet(f"{sink}/data", engine="fastparquet", columns=FLAT)
    else:
        frame = fastparquet.ParquetFile(f"{sink}/data").to_pandas(columns=FLAT)
    kinds = of_pandas(frame.dtypes)
    assert kinds.pop("source_modified").startswith("M8")  # in UTC, without saying so
    assert kinds.pop("channel") in {"i4", "f8"}  # with nulls of pandas' own, or NaN
    assert kinds == {n: PANDAS_TYPES[n] for n in FLAT if n in kinds}
    assert kinds.keys() == {*FLAT} - {"channel", "source_modified"}
    truth = {row["file_name"]: row for row in by_open_dataset(f"{sink}/data")[1]}
    records = frame[FLAT].to_dict("records")
    assert sorted(row["file_name"] for row in records) == sorted(expected)
    for row in records:
        wanted = truth[row["file_name"]]
        wanted["source_modified"] = wanted["source_modified"].replace(tzinfo=None)
        for name, value in row.items():
            assert value == wanted[name] or (pd.isna(value) and wanted[name] is None), name


numbers = itertools.count()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=3, unique=True))
@example(["007"])
@example(["1", "99999999999"])
@example(["2023-01-01"])
@example(["true"])
@example(["-1", "0x1f", "0", "0_", "-0xAb"])
@example(["__HIVE_DEFAULT_PARTITION__"])
@example(["a" + 59 * "東", "東" * 60, "ab" + "é" * 100])  # cut in the middle of a character
def test_whatever_folders_are_called_readers_take_the_whole_dataset(
    tmp_path: Path, folders: list[str]
) -> None:
    root = tmp_path / str(next(numbers))
    for i, folder in enumerate(folders):
        path = root / data_key(Part(folder, 0, 1))
        path.parent.mkdir(parents=True)
        table = rows([Recording(str(i), 1, "tag", 0)], folder_name=folder)
        path.write_bytes(to_parquet(table))
    data = f"{root}/data"
    assert pads.dataset(data, partitioning="hive").schema.field("folder").type == pa.string()
    by_sql = duckdb.sql(f"SELECT folder_name FROM '{data}/**/*.parquet'")
    assert by_sql is not None
    for found in (
        pd.read_parquet(data)["folder_name"],
        pq.read_table(data)["folder_name"].to_pylist(),
        pl.read_parquet(data)["folder_name"],
        [name for (name,) in by_sql.fetchall()],
    ):
        assert sorted(found) == sorted(folders)


def test_dask_takes_some_columns_of_folders_of_all_kinds_of_names(sink: str) -> None:
    """It must find each folder again among the keys whose types it has guessed."""
    import dask
    import dask.dataframe

    with dask.config.set(scheduler="synchronous"):
        frame = dask.dataframe.read_parquet(f"{sink}/data", columns=["folder_name"]).compute()
    assert set(frame["folder_name"]) == {*FOLDERS, BY_HAND}


def test_a_part_with_nothing_left_in_it_disturbs_nobody(sink: str, tmp_path: Path) -> None:
    """Pruning leaves such parts."""
    full = pq.read_table(f"{sink}/data/folder=225_/part-00-of-01.parquet", partitioning=None)
    for name, table in (("225", full), ("empty", full.slice(0, 0))):
        (tmp_path / f"folder={name}").mkdir()
        (tmp_path / f"folder={name}" / "part-00-of-01.parquet").write_bytes(to_parquet(table))
    for read in (by_pyarrow, by_polars, by_duckdb):
        types, found = read(str(tmp_path))
        assert types == TYPES
        assert len(found) == full.num_rows
    assert len(pd.read_parquet(tmp_path)) == full.num_rows


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.usefixtures("_offline")
def test_the_snippets_of_the_documentation_run(
    sink: str, expected: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    names: dict[str, Any] = {"SINK": sink}
    with dask.config.set(scheduler="synchronous"):
        for block in blocks():
            exec(compile(block, str(DOCS), "exec"), names)  # they are ours
    assert len(blocks()) >= 8
    # What the page says of them.
    tokens: list[NDArray[np.float32]] = names["tokens"]
    files: list[str] = names["table"]["file_name"].to_pylist()
    assert len(tokens) == len(expected)
    for file_name, values in zip(files, tokens, strict=True):
        wanted = expected[file_name]["token"]
        assert values.dtype == np.float32
        assert values.shape == wanted.shape
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-4)


def test_the_documentation_has_every_column_and_its_type(sink: str) -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", DOCS.read_text(), re.MULTILINE))
    schema = pq.read_schema(f"{sink}/data/folder=225_/part-00-of-01.parquet")
    names = [name for name in schema.names if not name.startswith("token")]
    assert {n: t for n, t in table.items() if n in names} == {
        n: str(schema.field(n).type).replace("element: ", "") for n in names
    }
    assert list(table) == [n for n in schema.names if n != "token_fake"]
