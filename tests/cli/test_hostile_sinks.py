"""Sinks that are foreign or damaged are refused with what is wrong, by every command alike."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import speechmill
from speechmill.cli.app import app
from speechmill.dataset.schema import METADATA_KEY
from speechmill.errors import DatasetError, SpeechmillError
from tests.support.corpus import build, wav, write

PART = "data/folder=p1/part-00-of-01.parquet"
DEEP = "[" * 100_000 + "]" * 100_000
Change = Callable[[Path], None]

COMMANDS: dict[str, tuple[str, ...]] = {
    "show": ("show", "SINK"),
    "build": ("build", "SOURCE", "SINK", "--transcriber", "fake", "--tokenizer", "fake"),
    "export": ("export", "parquet", "SINK", "OUT"),
    "repartition": ("repartition", "SINK", "OUT", "--by", "language"),
    "verify": ("tokens", "verify", "SINK"),
    "stats": ("tokens", "stats", "SINK"),
    "add": ("tokens", "add", "SINK", "--tokenizer", "mfcc"),
    "measure": ("measure", "SINK", "level"),
}


def part(change: Callable[[pa.Table], pa.Table]) -> Change:
    def changed(sink: Path) -> None:
        path = sink / PART
        pq.write_table(change(pq.read_table(path, partitioning=None)), path)

    return changed


def column(name: str, values: Callable[[int], pa.Array]) -> Change:
    return part(lambda t: t.set_column(t.column_names.index(name), name, values(t.num_rows)))


def metadata(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(table: pa.Table) -> pa.Table:
        told = change(json.loads(table.schema.metadata[METADATA_KEY]))
        text = told if isinstance(told, str) else json.dumps(told)
        return table.replace_schema_metadata({METADATA_KEY: text})

    return part(changed)


def written(name: str, text: str) -> Change:
    def changed(sink: Path) -> None:
        (sink / "_speechmill" / name).write_text(text)

    return changed


SINKS: dict[str, tuple[Change, str]] = {
    "null names": (column("file_name", pa.nulls), PART),
    "nulls for names": (column("file_name", lambda n: pa.nulls(n, pa.string())), PART),
    "integer names": (column("folder_name", lambda n: pa.array(range(n))), PART),
    "binary names": (column("file_name", lambda n: pa.array([b"\xff"] * n)), PART),
    "no names": (part(lambda t: t.drop_columns(["file_name"])), PART),
    "not a number": (column("duration_s", lambda n: pa.array([math.nan] * n)), PART),
    "endless": (column("duration_s", lambda n: pa.array([math.inf] * n)), PART),
    "version 99": (metadata(lambda m: {**m, "schema_version": 99}), "schema version 99"),
    "deep metadata": (metadata(lambda _: DEEP), PART),
    "list as metadata": (metadata(lambda _: [1]), PART),
    "number as metadata": (metadata(lambda _: "5"), PART),
    "no metadata": (part(lambda t: t.replace_schema_metadata({})), PART),
    "tokenizers of text": (metadata(lambda m: {**m, "tokenizers": ["x"]}), PART),
    "measures of nothing": (metadata(lambda m: {**m, "measures": [{}]}), PART),
    "deep source": (written("source.json", DEEP), "source.json"),
    "list as source": (written("source.json", "[]"), "source.json"),
    "deep layout": (written("layout.json", DEEP), "layout.json"),
    "layout of nothing": (
        written("layout.json", '{"schema_version": 2, "folders": {"p1": 0}}'),
        "layout.json",
    ),
}
WITH_LAYOUT = {"build"}  # the commands that ask for it
VALUES = {"nulls for names", "not a number", "endless"}  # which open_dataset hands out as they are


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    source = write(root / "in", {"p1/1.wav": wav(1), "p1/2.wav": wav(2)})
    build(source, str(root / "sink"))
    return root


@pytest.mark.parametrize("kind", list(SINKS))
def test_what_is_not_known_is_refused_with_what_is_wrong(
    made: Path, tmp_path: Path, kind: str
) -> None:
    change, wrong = SINKS[kind]
    for name, words in COMMANDS.items():
        if wrong == "layout.json" and name not in WITH_LAYOUT:
            continue
        sink = tmp_path / name
        shutil.copytree(made / "sink", sink)
        change(sink)
        places = {"SINK": str(sink), "SOURCE": str(made / "in"), "OUT": str(tmp_path / "out")}
        result = CliRunner().invoke(app, [places.get(word, word) for word in words])
        assert isinstance(result.exception, SpeechmillError), (name, result.exception)
        assert wrong in str(result.exception), (name, result.exception)
    if wrong != "layout.json" and kind not in VALUES:
        with pytest.raises(DatasetError, match=wrong.rpartition("/")[2]):
            speechmill.open_dataset(str(tmp_path / "show")).to_table()
