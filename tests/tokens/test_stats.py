"""``tokens stats`` and ``tokens verify``: the figures are those of the tokens, and what differs is
found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import speechmill
from speechmill.audio import spilling
from speechmill.cli.app import app
from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.commit import read_part
from speechmill.dataset.reader import list_parts
from speechmill.dataset.schema import codes_to_array, to_parquet
from speechmill.enrich.add import add_tokens
from speechmill.errors import DatasetError, JobError, ModelError
from speechmill.records import Codes
from speechmill.storage import StoreOptions, open_store
from speechmill.tokens.stats import ColumnStats, _Codebook, _Feature, token_stats
from speechmill.tokens.verify import VerifyReport, verify_tokens
from tests.support import corpus
from tests.support.codec_checkpoints import write_codec
from tests.support.harness import Bucket
from tests.support.room import limited_room
from tests.support.services import SeaweedFS

DIFFERS, SOME_NOT_COMPARED = 1, 3
NAMES = [f"p{i % 3}/{i}.wav" for i in range(7)]


@pytest.fixture
def sink(tmp_path: Path) -> str:
    """Codes and features of a small corpus, in several parts."""
    files = {name: corpus.wav(i, 0.2 + 0.1 * i) for i, name in enumerate(NAMES)}
    source = corpus.write(tmp_path / "corpus", files)
    corpus.build(source, str(tmp_path / "out"), tokenizer=("fake", "mfcc"), part_minutes=0.02)
    return str(tmp_path / "out")


def run(*arguments: str | Path) -> Result:
    """``speechmill tokens …``; it is wide enough for any line."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["tokens", *map(str, arguments)])


def arrays(sink: str, column: str) -> list[NDArray[Any]]:
    table = speechmill.open_dataset(sink).to_table()
    return [a for a in tokens_to_arrays(table[column]) if a is not None]


def change(sink: str, column: str, how: Any) -> None:
    """Change the tokens of the row of ``NAMES[0]``."""
    store = open_store(sink)
    for part in list_parts(store):
        table = read_part(part.key, store.get(part.key).data)
        names = table["file_name"].to_pylist()
        if NAMES[0] not in names:
            continue
        values = [a.copy() for a in tokens_to_arrays(table[column]) if a is not None]
        at = names.index(NAMES[0])
        values[at] = how(values[at])
        field = table.schema.field(column)
        column_at = table.column_names.index(column)
        codes = codes_to_array([Codes(v) for v in values], field.type)
        store.put(part.key, to_parquet(table.set_column(column_at, field, codes)))


# Figures.


def test_the_figures_are_those_of_all_codes_together(sink: str) -> None:
    (stats,) = token_stats(open_store(sink), column="token")
    codes = np.concatenate(arrays(sink, "token"), axis=1)
    seconds = sum(0.2 + 0.1 * i for i in range(len(NAMES)))
    assert (stats.rows, stats.null, stats.frames) == (len(NAMES), 0, codes.shape[1])
    assert stats.hours * 3600 == pytest.approx(seconds)
    assert stats.tokens_per_s == pytest.approx(codes.size / seconds)
    assert stats.bits_per_s == pytest.approx(codes.size / seconds * 10)
    entropies = []
    for row, book in zip(codes, stats.codebooks, strict=True):
        counts = np.unique(row, return_counts=True)[1]
        entropy = -(counts / len(row) * np.log2(counts / len(row))).sum()
        assert (book.codes, book.size, book.used) == (len(row), 1024, len(counts))
        assert book.dead == 1024 - len(counts)
        assert book.usage == pytest.approx(len(counts) / 1024)
        assert book.entropy_bits == pytest.approx(entropy)
        assert book.perplexity == pytest.approx(2**entropy)
        entropies.append(entropy)
    assert stats.entropy_bits_per_s == pytest.approx(sum(entropies) * codes.shape[1] / seconds)


def test_the_figures_are_those_of_all_features_together(sink: str) -> None:
    (stats,) = token_stats(open_store(sink), column="token_mfcc")
    values = np.concatenate(arrays(sink, "token_mfcc"), axis=1).astype(np.float64)
    assert stats.bits_per_s is None
    for row, feature in zip(values, stats.features, strict=True):
        found = (feature.mean, feature.std, feature.min, feature.max)
        assert found == pytest.approx((row.mean(), row.std(), row.min(), row.max()))


chunks = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20), min_size=1, max_size=6)


@given(chunks)
def test_however_the_codes_are_cut_into_parts_the_figures_are_the_same(
    pieces: list[list[int]],
) -> None:
    book, feature = _Codebook(np.zeros(32, np.int64)), _Feature()
    for piece in pieces:
        book.add(np.array(piece))
        feature.add(np.array(piece, np.float32))
    values = np.concatenate([np.array(piece) for piece in pieces])
    stats = book.stats(0, 32)
    assert stats.codes == len(values)
    assert stats.used == len(set(values.tolist()))
    assert stats.used + stats.dead == stats.size == max(32, values.max() + 1)
    assert 1 - 1e-9 <= stats.perplexity <= stats.used + 1e-9
    found = feature.stats(0)
    assert found.mean == pytest.approx(values.mean(), abs=1e-9)
    assert found.std == pytest.approx(values.std(), abs=1e-6)


def test_one_code_only_has_no_entropy_and_rows_without_tokens_are_counted(sink: str) -> None:
    change(sink, "token", lambda codes: codes)
    store = open_store(sink)
    for part in list_parts(store):
        table = read_part(part.key, store.get(part.key).data)
        rows = [
            {**row, "token": None if row["file_name"] == NAMES[1] else [[7] * 5] * 4}
            for row in table.to_pylist()
        ]
        store.put(part.key, to_parquet(type(table).from_pylist(rows, schema=table.schema)))
    (stats,) = token_stats(store, column="token")
    assert (stats.rows, stats.null) == (len(NAMES), 1)
    for book in stats.codebooks:
        assert (book.used, book.entropy_bits, book.perplexity) == (1, 0.0, 1.0)


def test_stats_as_text_and_as_json(sink: str, tmp_path: Path) -> None:
    shown = run("stats", sink)
    assert shown.exit_code == 0, shown.stderr
    assert "token (fake)" in shown.stdout
    assert "token_mfcc (mfcc)" in shown.stdout
    parsed = json.loads(run("stats", sink, "--column", "token", "--json").stdout)
    (stats,) = token_stats(open_store(sink), column="token")
    assert ColumnStats(**{**parsed[0], "codebooks": (), "features": ()}).frames == stats.frames
    assert len(parsed[0]["codebooks"]) == 4
    with pytest.raises(JobError, match="there are: token, token_mfcc"):
        token_stats(open_store(sink), column="token_mimi")
    corpus.build(str(tmp_path / "corpus"), str(tmp_path / "none"), tokenizer=("none",))
    with pytest.raises(DatasetError, match="there are no tokens"):
        token_stats(open_store(str(tmp_path / "none")))
    with pytest.raises(DatasetError, match="there is no dataset"):
        token_stats(open_store(str(tmp_path / "nothing")))


# Whether they can be made again.


def verify(sink: str, **options: Any) -> VerifyReport:
    return verify_tokens(open_store(sink), **options)


@pytest.mark.parametrize("column", ["token", "token_mfcc"])
def test_on_the_machine_that_made_them_none_differ(sink: str, column: str) -> None:
    report = verify(sink, column=column, sample=5)
    assert (report.rows, report.off, report.rate, report.lost.total()) == (5, 0, 0, 0)
    assert not any(report.differing)
    others = {verify(sink, column=column, sample=1, seed=s).frames for s in range(12)}
    assert len(others) > 1
    assert verify(sink, column=column, sample=10**6).rows == len(NAMES)


@pytest.mark.timeout(60)
def test_recordings_that_find_no_room_wait_for_it(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    limited_room(monkeypatch, 60_000)  # the longest takes 51,200
    report = verify(sink, column="token", sample=100)
    assert (report.rows, report.off, report.lost.total()) == (len(NAMES), 0, 0)
    limited_room(monkeypatch, 50_000)
    report = verify(sink, column="token", sample=100)
    assert (report.rows, dict(report.lost)) == (len(NAMES) - 1, {"failed": 1})
    assert "NoRoomError" in report.reasons[NAMES[-1]]


def test_codes_that_differ_are_found_and_counted_by_codebook(sink: str) -> None:
    def how(codes: NDArray[Any]) -> NDArray[Any]:
        codes[2, :3] = (codes[2, :3] + 1) % 1024
        return codes

    change(sink, "token", how)
    frames = sum(a.shape[1] for a in arrays(sink, "token"))
    report = verify(sink, column="token", sample=100)
    assert report.differing == pytest.approx((0, 0, 3 / frames, 0))
    assert [name for _, name in report.worst] == [NAMES[0]]
    failed = run("verify", sink, "--column", "token", "--sample", "100")
    assert failed.exit_code == DIFFERS
    assert NAMES[0] in failed.stdout
    assert run("verify", sink, "--column", "token", "--tolerance", "0.1").exit_code == 0


def test_features_that_differ_are_found_by_how_much(sink: str) -> None:
    def how(values: NDArray[Any]) -> NDArray[Any]:
        values[3, 1] += 0.25
        return values

    change(sink, "token_mfcc", how)
    report = verify(sink, column="token_mfcc", sample=100)
    assert report.off == report.largest == pytest.approx(0.25, abs=1e-4)
    tolerated = run("verify", sink, "--column", "token_mfcc", "--tolerance", "0.3")
    assert tolerated.exit_code == 0
    change(sink, "token_mfcc", lambda values: values[:, :-1])
    assert verify(sink, column="token_mfcc", sample=100).off == float("inf")


def test_recordings_that_are_gone_or_changed_are_not_compared(sink: str, tmp_path: Path) -> None:
    (tmp_path / "corpus" / NAMES[0]).unlink()
    corpus.write(tmp_path / "corpus", {NAMES[1]: corpus.wav(99)})
    report = verify(sink, column="token", sample=100)
    assert (report.rows, report.lost) == (len(NAMES) - 2, {"gone": 1, "changed": 1})
    done = run("verify", sink, "--column", "token", "--sample", "100")
    assert done.exit_code == SOME_NOT_COMPARED
    other = corpus.write(tmp_path / "other", {"p9/x.wav": corpus.wav(1)})
    with pytest.raises(DatasetError, match="none of the sampled rows"):
        verify(sink, column="token", source_url=other)


def test_a_codec_from_bucket_to_bucket_and_other_weights(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(object_store, tmp_path)
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    model = write_codec("encodec", tmp_path / "model")
    source = bucket.fill("verify", {name: corpus.wav(i, 0.5) for i, name in enumerate(NAMES)})
    sink = bucket.place("s3://dst/verify/out")
    storage = {"profile": "r2", "endpoint_url": sink.endpoint_url}
    corpus.build(source.url, sink.url, tokenizer=("fake",), **storage)
    there = ("--profile", "r2", "--endpoint-url", str(sink.endpoint_url))
    options = StoreOptions("r2", sink.endpoint_url)
    assert add_tokens(sink.store, f"encodec:{model}", source_options=options).rows == len(NAMES)
    report = verify_tokens(sink.store, column="token_encodec", sample=4, source_options=options)
    assert (report.rows, report.off) == (4, 0)
    done = run("verify", sink.url, *there, "--column", "token", "--sample", "4")
    assert done.exit_code == 0, done.stderr
    assert "rows compared       4" in done.stdout
    (model / "model.safetensors").write_bytes(
        (model / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\1"
    )
    with pytest.raises(ModelError, match="is not what made 'token_encodec'"):
        verify_tokens(sink.store, column="token_encodec")
