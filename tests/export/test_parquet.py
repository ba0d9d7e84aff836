"""``export parquet``: the rows as plain files, one for each path that the template gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.dataset.layout import agree_on_parts, data_key
from speechmill.dataset.schema import to_parquet
from speechmill.enrich.add import add_tokens
from speechmill.errors import DatasetError, JobError
from speechmill.export.parquet import export_parquet
from speechmill.records import Part, Recording
from speechmill.storage import Store, StoreOptions, open_store
from tests.support.corpus import build, memory, rows_of, wav, write
from tests.support.rows import rows
from tests.support.services import SeaweedFS

PLAIN = "{folder_name}/data.parquet"
FILES = {f"{folder}/{i}.wav": wav(10 * ord(folder[0]) + i) for folder in "pqr" for i in range(3)}


def exported(sink: str, out: Store, template: str = PLAIN) -> dict[str, list[str]]:
    """The files that were written: file names of their rows by path."""
    told = {e.key: e.rows for e in export_parquet(open_store(sink), out, template)}
    found = {}
    for there in out.list():
        table = pq.read_table(pa.BufferReader(out.get(there.key).data))
        assert table.num_rows == told[there.key]
        found[there.key] = table["file_name"].to_pylist()
    assert found.keys() == told.keys()
    return found


@pytest.fixture
def sink() -> str:
    url = memory()
    build(memory(FILES), url)
    return url


@pytest.fixture(params=["memory", "folder", "bucket"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "memory":
        return open_store(memory())
    if request.param == "folder":
        return open_store(str(tmp_path / "new" / "out"))
    server: SeaweedFS = request.getfixturevalue("object_store")
    for variable, value in server.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(variable, value)
    return open_store(f"s3://dst/{tmp_path.name}", StoreOptions(profile="r2"))


def test_one_file_a_folder_and_nothing_else_lands_in_out(sink: str, out: Store) -> None:
    assert exported(sink, out) == {
        f"{folder}/data.parquet": [f"{folder}/{i}.wav" for i in range(3)] for folder in "pqr"
    }


def test_exporting_again_replaces_the_files(sink: str, out: Store) -> None:
    out.put("p/data.parquet", b"something else")
    assert exported(sink, out) == exported(sink, out)


def test_a_folders_parts_come_into_one_file_in_order() -> None:
    files = {f"p/{i:02d}.wav": wav(i) for i in range(12)}
    sink = memory()
    build(memory(files), sink, part_minutes=0.05)
    parts = [o.key for o in open_store(sink).list("data")]
    assert len(parts) > 2
    (found,) = exported(sink, open_store(memory())).values()
    assert sorted(found) == sorted(files)
    in_order: list[str] = []
    for key in sorted(parts):
        table = pq.read_table(pa.BufferReader(open_store(sink).get(key).data))
        in_order += table["file_name"].to_pylist()
    assert found == in_order


def test_the_exported_rows_are_the_datasets(sink: str, tmp_path: Path) -> None:
    exported(sink, open_store(str(tmp_path)))
    rows = [row for path in sorted(tmp_path.glob("*/*")) for row in pq.read_table(path).to_pylist()]
    assert {row["file_name"]: row for row in rows} == rows_of(sink)
    schema = pq.read_schema(tmp_path / "p" / "data.parquet")
    assert b"speechmill" in schema.metadata


@pytest.mark.parametrize(
    "template", ["all.parquet", "x/y/{folder_name}.parquet", "{folder_name}/{folder_name}.parquet"]
)
def test_other_layouts(sink: str, template: str) -> None:
    found = exported(sink, open_store(memory()), template)
    assert found.keys() == {template.format(folder_name=f) for f in "pqr"}
    assert sorted(n for names in found.values() for n in names) == sorted(FILES)


@pytest.mark.parametrize(
    "template",
    [
        *("", "data", "{folder_name}", "{folder_name}/data.csv", "/{folder_name}.parquet"),
        *("../{folder_name}.parquet", "a/../b.parquet", "a//b.parquet", "./{folder_name}.parquet"),
        *("{file_name}.parquet", "{}.parquet", "{0}.parquet", "{folder_name.parquet", "}.parquet"),
        *("{folder_name.__class__}.parquet", "{folder_name[0]}.parquet", "{folder_name!r}.parquet"),
        *("{folder_name:d}.parquet", "{folder_name:{width}}.parquet"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused_before_anything_is_written(
    sink: str, template: str
) -> None:
    out = open_store(memory())
    with pytest.raises(JobError, match="the template"):
        exported(sink, out, template)
    assert not list(out.list())


def odd_names() -> Mapping[str, str]:
    return {
        "..": "%2E%2E",
        ".": "%2E",
        "../../etc": "..%2F..%2Fetc",
        "/abs": "%2Fabs",
        "225": "225",
        "a b": "a%20b",
        "Zoë": "Zo%C3%AB",
    }


def test_folder_names_do_not_lead_out_of_out(tmp_path: Path) -> None:
    sink = memory()
    store = open_store(sink)
    agree_on_parts(store, dict.fromkeys(odd_names(), 1))
    for name in odd_names():
        table = rows([Recording(name, 1, "tag", 0)], folder_name=name)
        store.put(data_key(Part(name, 0, 1)), to_parquet(table))
    out = tmp_path / "in" / "here"
    found = exported(sink, open_store(str(out)))
    assert {key: names[0] for key, names in found.items()} == {
        f"{path}/data.parquet": name for name, path in odd_names().items()
    }
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("below", "template"),
    [("", "data/{folder_name}.parquet"), ("/data", PLAIN), ("/_speechmill/x", PLAIN)],
)
def test_an_export_does_not_land_among_the_datasets_own_files(
    sink: str, below: str, template: str
) -> None:
    with pytest.raises(JobError, match="dataset's own files"):
        exported(sink, open_store(sink + below), template)
    assert sorted(rows_of(sink)) == sorted(FILES)


def test_an_export_may_lie_beside_the_dataset(sink: str) -> None:
    told = list(export_parquet(open_store(sink), open_store(f"{sink}/plain"), PLAIN))
    assert len(told) == 3
    assert sorted(rows_of(sink)) == sorted(FILES)


def test_a_sink_without_rows_is_an_error_and_not_an_empty_export(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no rows"):
        exported(str(tmp_path / "empty"), open_store(memory()))


def test_a_sink_in_the_middle_of_an_adding_is_exported_with_null_where_tokens_are_missing(
    tmp_path: Path,
) -> None:
    sink = str(tmp_path / "sink")
    build(write(tmp_path / "source", FILES), sink)
    store = open_store(sink)
    late = data_key(Part("q", 0, 1))
    before = store.get(late).data
    add_tokens(store, "mfcc")
    store.put(late, before)
    out = open_store(memory())
    assert exported(sink, out, "all.parquet") == {"all.parquet": sorted(FILES)}
    table = pq.read_table(pa.BufferReader(out.get("all.parquet").data))
    missing = [
        name
        for name, tokens in zip(
            table["file_name"].to_pylist(), table["token_mfcc"].to_pylist(), strict=True
        )
        if tokens is None
    ]
    assert missing == [name for name in sorted(FILES) if name.startswith("q/")]
