"""Names that a disk takes for one are found out before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speechmill.dataset.reader import stored_schema
from speechmill.errors import JobError
from speechmill.export import files
from speechmill.export.files import Place, in_threads
from speechmill.export.parquet import export_parquet
from speechmill.export.repartition import repartition
from speechmill.pipeline import resources
from speechmill.storage import Store, open_store
from speechmill.storage.local import LocalStore
from speechmill.storage.lookalikes import check_distinct, folded, tells_apart
from speechmill.tokens.wav_files import _Rows
from tests.support.corpus import build, memory, wav, write

ALIKE = {"p/1.wav": wav(1), "P/1.wav": wav(2)}
REFUSED = "does not tell upper from lower case"


class Folding(LocalStore):
    """A folder on a disk that does not tell upper from lower case."""

    def _path(self, key: str) -> str:
        return super()._path(key.casefold())


def folding(url: str) -> Any:
    """``open_store``, with this folder on such a disk."""
    return lambda given, *more: Folding(url) if given == url else open_store(given, *more)


@pytest.fixture
def sink(tmp_path: Path) -> str:
    build(write(tmp_path / "source", ALIKE), url := str(tmp_path / "sink"))
    return url


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize(
    ("one", "other"), [("p", "P"), ("straße", "STRASSE"), ("e\u0301", "\u00c9"), ("Ω", "ω")]
)
def test_names_that_differ_in_case_or_in_how_a_letter_is_written_are_alike(
    one: str, other: str
) -> None:
    assert folded(one) == folded(other)


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert tells_apart(open_store(str(tmp_path / "a")))
    assert not tells_apart(Folding(str(tmp_path / "b")))
    assert tells_apart(open_store(memory()))
    assert contents(tmp_path) == ["a", "b"]


def test_only_where_names_are_alike_a_store_is_tried(tmp_path: Path) -> None:
    check_distinct(Folding(str(tmp_path / "none")), ["a", "b", "a"], "")
    assert contents(tmp_path) == []
    check_distinct(open_store(memory()), ["a", "A"], "")
    with pytest.raises(JobError, match=f"{REFUSED}, so 'a' and 'A' .*: elsewhere"):
        check_distinct(Folding(str(tmp_path)), ["a", "b", "A"], "elsewhere")


def test_an_export_is_refused_before_it_writes(sink: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(JobError, match=REFUSED):
        list(export_parquet(open_store(sink), Folding(str(out)), "{folder_name}/data.parquet"))
    assert contents(out) == []
    here = list(export_parquet(open_store(sink), open_store(str(out)), "{folder_name}.parquet"))
    assert {one.key for one in here} == {"p.parquet", "P.parquet"}
    whole: Store = Folding(str(tmp_path / "whole"))
    assert [one.rows for one in export_parquet(open_store(sink), whole, "all.parquet")] == [2]


def test_repartition_is_refused_before_it_writes(
    sink: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(files, "open_store", folding(out))
    with pytest.raises(JobError, match=REFUSED):
        repartition(Place(sink), Place(out), ["folder_name"], run=in_threads)
    assert contents(Path(out)) == []


def test_decode_is_refused_before_it_writes(sink: str, tmp_path: Path) -> None:
    store, out = open_store(sink), tmp_path / "out"
    schema = stored_schema(store)
    assert schema is not None
    for where, refused in ((None, True), ("folder_name = 'p'", False)):
        rows = _Rows(store, schema, "token", where)
        rows.choose(None)
        rows.check_distinct(open_store(str(out)))
        if refused:
            with pytest.raises(JobError, match=f"{REFUSED}.*--where"):
                rows.check_distinct(Folding(str(out)))
        else:
            rows.check_distinct(Folding(str(out)))
    assert contents(out) == []


def test_a_build_is_refused_before_it_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = write(tmp_path / "source", ALIKE), str(tmp_path / "sink")
    monkeypatch.setattr(resources, "open_store", folding(sink))
    with pytest.raises(JobError, match=f"{REFUSED}.*--partition-by"):
        build(source, sink)
    assert not (tmp_path / "sink" / "data").exists()
    assert build(source, str(tmp_path / "other"), partition_by="hash:4").rows == 2
