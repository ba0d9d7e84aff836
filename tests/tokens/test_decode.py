"""Codes back into sound: what is heard is what the codec decodes, and lies where it should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import speechmill
from speechmill.dataset.commit import read_part
from speechmill.dataset.reader import list_parts
from speechmill.dataset.schema import to_parquet
from speechmill.errors import DatasetError, JobError, ModelError
from speechmill.records import Codes
from speechmill.storage import open_store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Codec
from speechmill.tokens.decode import decode_tokens, open_codec
from speechmill.tokens.wav_files import DecodeReport, _harmless, decode_dataset
from tests.support import corpus
from tests.support.audio_files import pcm_wav
from tests.support.codec_checkpoints import write_codec
from tests.support.harness import Bucket
from tests.support.services import SeaweedFS

SOME_FAILED = 3


def decode(sink: str | Path, out: str | Path, **options: Any) -> DecodeReport:
    return decode_dataset(open_store(str(sink)), open_store(str(out)), **options)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_wav(path: Path) -> tuple[NDArray[np.int16], int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "speechmill", "decode", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        timeout=120,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codec("encodec", tmp_path_factory.mktemp("model") / "encodec")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> str:
    """A dataset with codes of a small EnCodec, and MFCC."""
    root = tmp_path_factory.mktemp("encoded")
    names = ["p1/a.wav", "p1/b.wav", "p2/deep/c.wav"]
    recordings = {name: corpus.wav(i, 0.3113 + 0.27 * i) for i, name in enumerate(names)}
    source = corpus.write(root / "corpus", recordings)
    spec = f"encodec:{model}"
    options = {"encodec": {"bandwidth": 2.4}}
    corpus.build(source, str(root / "out"), tokenizer=("mfcc", spec), tokenizer_option=options)
    return str(root / "out")


def faked(tmp_path: Path, names: list[str]) -> Path:
    """A dataset of these recordings, with codes of the fake tokenizer."""
    recordings = {name: corpus.wav(i, 0.2 + 0.05 * i) for i, name in enumerate(names)}
    source = corpus.write(tmp_path / "corpus", recordings)
    corpus.build(source, str(tmp_path / "out"))
    return tmp_path / "out"


# What is heard.


def test_a_file_holds_what_the_codec_decodes_as_long_as_the_row(
    encoded: str, model: Path, tmp_path: Path
) -> None:
    report = decode(encoded, tmp_path)  # of two columns, the one that can be decoded
    assert (report.column, report.written, report.complete) == ("token_encodec", 3, True)
    assert files(tmp_path) == ["p1/a.wav", "p1/b.wav", "p2/deep/c.wav"]
    codec = open_tokenizer(f"encodec:{model}", {"bandwidth": 2.4})
    assert isinstance(codec, Codec)
    for row in speechmill.open_dataset(encoded).to_table().to_pylist():
        (samples,) = codec.decode([Codes(np.array(row["token_encodec"], np.int16))])
        pcm, rate = read_wav(tmp_path / row["file_name"])
        assert rate == codec.sample_rate
        assert len(pcm) == round(row["duration_s"] * rate) < len(samples)
        wanted = np.clip(samples[: len(pcm)], -1, 1) * 32_767
        assert np.abs(pcm - wanted).max() <= 0.5
        assert pcm.std() > 1


def test_a_row_is_decoded_in_python_as_a_table_and_as_a_dict(encoded: str) -> None:
    table = speechmill.open_dataset(encoded).to_table()
    row = table.slice(1, 1)
    waveform = decode_tokens(row)
    assert waveform.sample_rate == 8_000
    assert len(waveform.samples) == round(row["duration_s"][0].as_py() * 8_000)
    assert waveform.samples.dtype == np.float32
    others = [
        decode_tokens(row.to_batches()[0]),
        decode_tokens(row.select(["token_encodec", "duration_s"])),
        decode_tokens(row, column="token_encodec"),
        decode_tokens(row.to_pylist()[0], codec=open_codec(encoded)),
    ]
    assert all(np.array_equal(one.samples, waveform.samples) for one in others)
    longer = decode_tokens(row.select(["token_encodec"])).samples  # nothing says how long it is
    assert np.array_equal(longer[: len(waveform.samples)], waveform.samples)


def test_what_cannot_be_decoded_in_python_is_said(encoded: str) -> None:
    table = speechmill.open_dataset(encoded).to_table()
    with pytest.raises(JobError, match="one row is decoded, not 3"):
        decode_tokens(table)
    with pytest.raises(JobError, match="open_codec"):
        decode_tokens(table.to_pylist()[0])
    with pytest.raises(JobError, match="'token' are mfcc, which cannot be turned back"):
        decode_tokens(table.slice(0, 1), column="token")
    with pytest.raises(JobError, match="no tokens 'token_mimi'; there are: token, token_encodec"):
        decode_tokens(table.slice(0, 1), column="token_mimi")
    with pytest.raises(DatasetError, match="metadata of its schema"):
        decode_tokens(table.slice(0, 1).replace_schema_metadata(None))


# Where it lies.


def test_rows_of_one_recording_get_their_spans_and_same_stems_their_extensions(
    tmp_path: Path,
) -> None:
    sink = faked(tmp_path, ["p1/a.wav", "p1/one.wav", "p1/bare.dotted.wav"])
    source = tmp_path / "corpus" / "p1"
    shutil.copy(source / "one.wav", source / "one.flac")  # by their content both are WAV
    corpus.build(str(tmp_path / "corpus"), str(sink))
    store = open_store(str(sink))
    for part in list_parts(store):  # cut a row in two
        table = read_part(part.key, store.get(part.key).data)
        rows = table.to_pylist()
        whole = next(r for r in rows if r["file_name"] == "p1/a.wav")
        rows.append({**whole, "start_s": 12.34, "end_s": 12.44, "duration_s": 0.1})
        store.put(part.key, to_parquet(type(table).from_pylist(rows, schema=table.schema)))
    assert decode(sink, tmp_path / "wav").written == 5
    assert files(tmp_path / "wav") == [
        "p1/a_0.000-0.200.wav",
        "p1/a_12.340-12.440.wav",
        "p1/bare.dotted.wav",
        "p1/one.flac.wav",
        "p1/one.wav.wav",
    ]
    # The names are the same for any choice of rows.
    decode(sink, tmp_path / "some", where="start_s > 1 OR file_name LIKE '%.flac'")
    assert files(tmp_path / "some") == ["p1/a_12.340-12.440.wav", "p1/one.flac.wav"]


def test_channels_that_were_split_get_a_file_each(tmp_path: Path) -> None:
    two = np.stack([corpus.samples(i) for i in (1, 2)]).astype(np.float32) / np.float32(2**15)
    source = corpus.write(
        tmp_path / "source", {"p1/call.wav": pcm_wav(two), "p1/one.wav": corpus.wav()}
    )
    corpus.build(source, str(tmp_path / "sink"), channels="split")
    assert decode(tmp_path / "sink", tmp_path / "wav").written == 3
    assert files(tmp_path / "wav") == [
        "p1/call_channel0.wav",
        "p1/call_channel1.wav",
        "p1/one_channel0.wav",
    ]
    decode(tmp_path / "sink", tmp_path / "some", where="channel = 1")
    assert files(tmp_path / "some") == ["p1/call_channel1.wav"]


@given(st.text(alphabet="./a\\\0\n~%é", max_size=20))
def test_no_path_leads_out_of_the_folder(name: str) -> None:
    path = PurePosixPath("/out") / _harmless(f"{name}.wav")
    assert _harmless(f"{name}.wav")[0] != "/"
    assert not {"", ".", ".."} & set(_harmless(f"{name}.wav").split("/"))
    assert path.is_relative_to("/out")
    assert not any(ord(c) < 32 for c in str(path))


@given(st.text(alphabet="./a%2FE", min_size=1, max_size=12))
def test_harmless_names_stay_as_they_are(name: str) -> None:
    if all(component.strip(".") for component in name.split("/")):
        assert _harmless(name) == name


def test_a_condition_a_limit_and_what_is_there_already(tmp_path: Path) -> None:
    sink, out = faked(tmp_path, [f"p{i % 2}/{i}.wav" for i in range(6)]), tmp_path / "wav"
    assert decode(sink, out, where="folder_name = 'p1' AND duration_s < 0.4").written == 2
    assert files(out) == ["p1/1.wav", "p1/3.wav"]
    (out / "p1" / "1.wav").write_bytes(b"mine")
    report = decode(sink, out, where="folder_name = 'p1'")
    assert (report.rows, report.written, report.existing) == (3, 1, 2)
    assert (out / "p1" / "1.wav").read_bytes() == b"mine"
    assert decode(sink, out, where="folder_name = 'p1'", overwrite=True).written == 3
    assert (out / "p1" / "1.wav").read_bytes() != b"mine"
    assert decode(sink, tmp_path / "few", limit=4).written == 4
    assert len(files(tmp_path / "few")) == 4
    with pytest.raises(DatasetError, match=r"no row of .* is chosen"):
        decode(sink, out, where="folder_name = 'p7'")
    with pytest.raises(JobError, match="folder_nam"):
        decode(sink, out, where="folder_nam = 'p7'")


def test_not_into_the_dataset_and_not_into_its_source(tmp_path: Path) -> None:
    sink = faked(tmp_path, ["p1/a.wav"])
    for out in (sink, sink / "data", sink / "_speechmill" / "x"):
        with pytest.raises(JobError, match="where the dataset itself lies"):
            decode(sink, out)
    before = (tmp_path / "corpus" / "p1" / "a.wav").read_bytes()
    with pytest.raises(JobError, match="lies in the dataset's source"):
        decode(sink, tmp_path / "corpus", overwrite=True)
    assert (tmp_path / "corpus" / "p1" / "a.wav").read_bytes() == before


def test_rows_that_cannot_be_decoded_stop_no_others(tmp_path: Path) -> None:
    names = [f"p1/{i}.wav" for i in range(3)]
    sink = faked(tmp_path, [*names, f"p1/{'x' * 249}.wav"])
    (tmp_path / "long.wav").write_bytes(b"")
    store = open_store(str(sink))
    (part,) = list_parts(store)
    table = read_part(part.key, store.get(part.key).data)
    rows = table.to_pylist()
    rows[1]["token"] = None
    long = next(r for r in rows if "xxx" in r["file_name"])
    rows.append({**long, "start_s": 1.0, "end_s": 1.1})  # with spans its name is too long
    store.put(part.key, to_parquet(type(table).from_pylist(rows, schema=table.schema)))
    report = decode(sink, tmp_path / "wav")
    assert (report.written, report.null, len(report.failed)) == (2, 1, 2)
    assert all("too long" in reason for reason in report.failed.values())
    assert not report.complete
    assert run(sink, tmp_path / "again").returncode == SOME_FAILED


# The weights.


def test_the_same_weights_elsewhere_are_taken_and_others_refused(
    encoded: str, model: Path, tmp_path: Path
) -> None:
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(model, moved)
    shutil.copytree(model, other)
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["decoder.layers.0.conv.bias"] = weights["decoder.layers.0.conv.bias"] + 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    decode(encoded, tmp_path / "there")
    assert decode(encoded, tmp_path / "here", model=str(moved)).complete
    there, here = (
        {f: (tmp_path / n / f).read_bytes() for f in files(tmp_path / n)} for n in ("there", "here")
    )
    assert there == here
    with pytest.raises(ModelError, match=r"not what made.*model\.safetensors.*--model"):
        decode(encoded, tmp_path / "x", model=str(other))
    with pytest.raises(ModelError, match=r"there is no model folder.*--model says where"):
        decode(encoded, tmp_path / "x", model=str(tmp_path / "nowhere"))
    assert not (tmp_path / "x").exists()


# As a user meets it.


def test_the_command_from_bucket_to_bucket_and_its_errors_in_one_line(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(object_store, tmp_path)
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    source = bucket.fill("decode", {"p1/a.wav": corpus.wav(1), "p2/a b+%.wav": corpus.wav(2)})
    sink = bucket.place("s3://dst/decode/out")
    storage = {"profile": "r2", "endpoint_url": sink.endpoint_url}
    corpus.build(source.url, sink.url, tokenizer=("fake", "mfcc"), **storage)
    there = ("--profile", "r2", "--endpoint-url", str(sink.endpoint_url))
    done = run(sink.url, "s3://dst/decode/wav", *there)
    assert done.returncode == 0, done.stderr
    assert "to do: 2 rows" in done.stderr
    assert "written    2" in done.stdout
    keys = sorted(o.key for o in bucket.place("s3://dst/decode/wav").store.list())
    assert keys == ["p1/a.wav", "p2/a b+%.wav"]
    assert run(sink.url, tmp_path / "wav", *there, "--column", "token").returncode == 0
    codec = open_codec(sink.url, column="token", profile="r2", endpoint_url=sink.endpoint_url)
    assert codec.name == "fake"
    for arguments, code, said in [
        (("--column", "token_mfcc"), 2, "cannot be turned back"),
        (("--where", "folder_name = p1"), 2, "no column 'p1'"),
        (("--where", "folder_name = 'p9'"), 1, "no row of"),
    ]:
        failed = run(sink.url, tmp_path / "x", *there, *arguments)
        assert failed.returncode == code
        assert said in failed.stderr
        assert "Traceback" not in failed.stderr
