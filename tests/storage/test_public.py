"""Buckets of others: public ones, ones whose requester pays, and objects that are archived."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from typer.testing import CliRunner

import speechmill
from speechmill import Job
from speechmill.cli.app import app
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import AccessDeniedError, ArchivedError, JobError
from speechmill.storage import StoreOptions, open_store
from tests.support import corpus
from tests.support.faults import FaultyProxy
from tests.support.services import SeaweedFS

ARCHIVED = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>InvalidObjectState</Code><Message>The operation is not valid for the object's storage
class</Message><StorageClass>GLACIER</StorageClass></Error>"""
ODD = "p1/odd\tb.wav"  # a key that obstore cannot name


class Overheard(FaultyProxy):
    """A proxy that keeps the head of each request, and answers those that ``archived`` names as S3
    answers for an object in Glacier."""

    def __init__(self, target: str) -> None:
        super().__init__(target, rate=0.0)
        self.heads: list[str] = []
        self.archived: Callable[[str], bool] = lambda line: False

    def _exchange(
        self,
        client: socket.socket,
        upstream: socket.socket,
        replies: BinaryIO,
        head: bytes,
        body: bytes,
    ) -> bool:
        self.heads.append(head.decode(errors="replace").lower())
        if self.archived(head.partition(b"\r\n")[0].decode(errors="replace")):
            data = ARCHIVED.encode()
            reply = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            client.sendall(reply + data)
            return True
        return super()._exchange(client, upstream, replies, head, body)


@pytest.fixture
def public(object_store: SeaweedFS) -> str:
    """Two recordings that anyone may read. Returns their folder in the bucket."""
    folder = uuid.uuid4().hex
    for number, name in enumerate(("p1/a.wav", ODD)):
        object_store.client().put_object(
            Bucket="public", Key=f"{folder}/{name}", Body=corpus.wav(number)
        )
    return folder


@pytest.fixture
def overheard(object_store: SeaweedFS) -> Iterator[Overheard]:
    with Overheard(object_store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def keys(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Keys in a profile, and the options of a job that name it."""
    for name, value in object_store.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(name, value)
    return {"profile": "r2"}


def test_a_public_bucket_is_built_from_without_any_keys(
    object_store: SeaweedFS, overheard: Overheard, public: str
) -> None:
    """There are none in this process: see conftest."""
    sink = corpus.memory()
    reach: dict[str, Any] = {"endpoint_url": overheard.endpoint_url, "anonymous": True}
    report = corpus.build(f"s3://public/{public}", sink, **reach)
    assert (report.rows, report.failed) == (2, 0)
    assert set(corpus.rows_of(sink)) == {"p1/a.wav", ODD}
    assert not [head for head in overheard.heads if "authorization" in head]
    with pytest.raises(AccessDeniedError, match="no credentials"):
        corpus.build(f"s3://public/{public}", corpus.memory(), endpoint_url=reach["endpoint_url"])
    with pytest.raises(AccessDeniedError):
        next(iter(open_store("s3://src", StoreOptions(**reach)).list()), None)


def test_a_public_source_goes_into_a_sink_with_keys(
    public: str, object_store: SeaweedFS, overheard: Overheard, keys: dict[str, str]
) -> None:
    sink = f"s3://dst/{public}"
    job = Job(
        source=f"s3://public/{public}",
        sink=sink,
        anonymous=True,
        endpoint_url=overheard.endpoint_url,
        sink_profile=keys["profile"],
        sink_endpoint_url=object_store.endpoint_url,
        transcriber="fake",
        tokenizer="fake",
    )
    assert speechmill.build(job).rows == 2
    assert not [head for head in overheard.heads if "authorization" in head]
    rows = speechmill.open_dataset(sink, profile="r2")
    assert rows.count_rows() == 2


def test_a_public_dataset_is_read_without_any_keys(
    object_store: SeaweedFS, public: str, tmp_path: Path, keys: dict[str, str]
) -> None:
    source = corpus.write(tmp_path / "source", {"p1/a.wav": corpus.wav()})
    sink = f"s3://public/{public}-out"
    job = Job(source=source, sink=sink, transcriber="fake", tokenizer="fake", profile="r2")
    speechmill.build(job)
    reach = ("--endpoint-url", object_store.endpoint_url, "--anonymous")
    for command in (
        ("show", sink),
        ("failures", sink),
        ("tokens", "stats", sink),
        ("tokens", "verify", sink),
        ("export", "parquet", sink, str(tmp_path / "plain")),
        ("repartition", sink, str(tmp_path / "anew"), "--by", "language"),
        ("doctor", sink),
    ):
        done = CliRunner().invoke(app, [*command, *reach])
        assert done.exit_code == 0, (command, done.output, done.exception)
    endpoint_url = object_store.endpoint_url
    found = speechmill.open_dataset(sink, endpoint_url=endpoint_url, anonymous=True)
    assert found.count_rows() == 1


def test_who_agrees_to_pay_says_so_in_every_request(
    public: str, overheard: Overheard, keys: dict[str, str]
) -> None:
    reach: dict[str, Any] = {**keys, "endpoint_url": overheard.endpoint_url}
    for pays in (True, False):
        overheard.heads.clear()
        report = corpus.build(f"s3://public/{public}", corpus.memory(), request_payer=pays, **reach)
        assert report.rows == 2
        saying = ["\r\nx-amz-request-payer: requester\r\n" in head for head in overheard.heads]
        signed = [
            "x-amz-request-payer" in head.partition("signedheaders=")[2].partition(",")[0]
            for head in overheard.heads
        ]
        assert len(saying) >= 3  # a listing, and two recordings: by obstore, and by ourselves
        assert saying == signed == [pays] * len(saying)


@pytest.mark.parametrize(
    ("url", "options", "problem"),
    [
        ("s3://b", {"anonymous": True}, "exclude each other"),
        ("memory://b", {}, "only in buckets of s3://"),
        ("/folder", {}, "only in buckets of s3://"),
    ],
)
def test_where_nobody_can_pay_an_error_says_so(
    url: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(JobError, match=problem):
        open_store(url, StoreOptions(request_payer=True, **options))


def test_an_archived_recording_is_a_failure_that_says_how_to_have_it(
    public: str, overheard: Overheard
) -> None:
    reach: dict[str, Any] = {"endpoint_url": overheard.endpoint_url, "anonymous": True}
    source, sink = f"s3://public/{public}", corpus.memory()
    overheard.archived = lambda line: ".wav" in line and line.startswith("GET")
    report = corpus.build(source, sink, **reach)
    assert (report.rows, report.failed) == (0, 2)
    failed = failed_recordings(open_store(sink))
    for one in failed:
        assert (one.stage, one.error) == ("fetch", ArchivedError.__name__)
        assert "is in an archive" in one.message
        assert "restore-object" in one.message
    overheard.archived = lambda line: False  # it has been restored
    again = corpus.build(source, sink, **reach)
    assert (again.rows, again.failed) == (2, 0)


def test_an_archived_file_without_extension_is_no_end_of_a_plan(
    object_store: SeaweedFS, public: str, overheard: Overheard
) -> None:
    object_store.client().put_object(Bucket="public", Key=f"{public}/bare", Body=corpus.wav())
    overheard.archived = lambda line: "/bare" in line and line.startswith("GET")
    sink = corpus.memory()
    reach: dict[str, Any] = {"endpoint_url": overheard.endpoint_url, "anonymous": True}
    report = corpus.build(f"s3://public/{public}", sink, **reach)
    assert (report.rows, report.failed) == (2, 1)
