"""What messages say: ours, and the events of object stores as each sends them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.queues.base import Message
from speechmill.queues.filer import read_filer_event
from speechmill.queues.notices import Notice, PoisonError, encode, key_below, read_notices
from speechmill.records import Part, Recording

odd_keys = st.binary(min_size=1, max_size=40).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


def event(body: Any, key: str = "") -> list[Notice]:
    return read_notices(Message(json.dumps(body).encode(), key))


def s3_record(name: str, key: str, bucket: str = "voices") -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2026-01-31T23:59:59.000Z",
        "eventName": name,
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": key, "size": 1024, "eTag": "d41d8cd98f00b204", "sequencer": "0055"},
        },
    }


etags = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@given(odd_keys, st.integers(0, 2**40), etags, st.integers(0, 2**60))
def test_our_messages_say_what_was_listed(key: str, size: int, etag: str, modified: int) -> None:
    recording = Recording(key, size, etag, modified)
    message = encode("s3://voices/vctk", recording, Part("p225", 2, 7))
    assert message.body.isascii()
    (notice,) = read_notices(message)
    assert notice == Notice("created", "s3://voices/vctk", key, recording, 7)
    assert key_below("s3://voices/vctk", notice) == key
    assert key_below("s3://voices/other", notice) is None


def test_messages_of_one_part_share_a_key() -> None:
    one, two, other = (
        encode("s3://v", Recording(f"{i}.wav", 1, "e", 1), Part("p225", index, 4)).key
        for i, index in enumerate((1, 1, 3))
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ObjectCreated:Put", "created"),
        ("ObjectCreated:CompleteMultipartUpload", "created"),
        ("s3:ObjectCreated:Copy", "created"),
        ("ObjectRestore:Completed", "created"),
        ("ObjectRemoved:Delete", "removed"),
        ("s3:ObjectRemoved:DeleteMarkerCreated", "removed"),
        ("LifecycleExpiration:Delete", "removed"),
        ("ObjectTagging:Put", None),
        ("ObjectRestore:Post", None),
        ("s3:ObjectAccessed:Get", None),
    ],
)
def test_events_of_aws_and_minio(name: str, kind: str | None) -> None:
    key = "vctk/p225/a%20b%2B+%C3%BC.flac"
    body = {"Records": [s3_record(name, key)], "EventName": name, "Key": f"voices/{key}"}
    found = event(body)
    assert [n.kind for n in found] == ([kind] if kind else [])
    for notice in found:
        assert notice.key == "vctk/p225/a b+ ü.flac"
        assert key_below("s3://voices/vctk", notice) == "p225/a b+ ü.flac"
        assert key_below("s3://voices", notice) == "vctk/p225/a b+ ü.flac"
        assert key_below("s3://voices/vct", notice) is None
        assert key_below("s3://other/vctk", notice) is None
        assert key_below("/voices/vctk", notice) is None


def test_several_records_of_one_message() -> None:
    records = [s3_record("ObjectCreated:Put", f"{i}.wav") for i in range(3)]
    assert [n.key for n in event({"Records": records})] == ["0.wav", "1.wav", "2.wav"]


def test_events_by_way_of_sns_and_event_bridge() -> None:
    inner = json.dumps({"Records": [s3_record("ObjectCreated:Put", "a+b.wav")]})
    (notice,) = event({"Type": "Notification", "TopicArn": "arn:…", "Message": inner})
    assert notice.key == "a b.wav"
    bridged = {
        "version": "0",
        "detail-type": "Object Created",
        "source": "aws.s3",
        "time": "2026-01-31T23:59:59Z",
        "detail": {"bucket": {"name": "voices"}, "object": {"key": "a+b.wav", "size": 5}},
    }
    (notice,) = event(bridged)
    assert (notice.kind, notice.source, notice.key) == ("created", "s3://voices", "a+b.wav")
    (notice,) = event({**bridged, "detail-type": "Object Deleted"})
    assert notice.kind == "removed"
    assert event({**bridged, "detail-type": "Object Tags Added"}) == []


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("PutObject", "created"),
        ("CopyObject", "created"),
        ("CompleteMultipartUpload", "created"),
        ("DeleteObject", "removed"),
        ("LifecycleDeletion", "removed"),
        ("SomethingNew", None),
    ],
)
def test_events_of_r2(action: str, kind: str | None) -> None:
    found = event(
        {
            "account": "3f4b7e3d",
            "action": action,
            "bucket": "voices",
            "object": {"key": "vctk/p225/a+b.flac", "size": 65536, "eTag": "c846ff7a18f28c2e26"},
            "eventTime": "2026-01-31T23:59:59.687Z",
        }
    )
    assert [n.kind for n in found] == ([kind] if kind else [])
    assert all(n.key == "vctk/p225/a+b.flac" and n.source == "s3://voices" for n in found)


def test_test_events_are_of_no_interest() -> None:
    assert event({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "voices"}) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"17",
        b"{}",
        b'{"hello": "world"}',
        b'{"Records": [{}]}',
        b'{"Records": [17]}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": {}}]}',
        b'{"speechmill": 99, "source": "s3://v", "key": "a"}',
        b'{"speechmill": 1, "source": "s3://v"}',
        b'{"speechmill": 1, "source": "", "key": "", "size": 1, "etag": "", "modified_us": 1}',
        b'{"speechmill": 1, "source": 3, "key": "a", "size": 1, "etag": "", "modified_us": 1}',
        b'{"speechmill": 1, "source": "s3://v", "key": "a", "size": "x", "etag": "", '
        b'"modified_us": 1}',
        b'{"speechmill": 1, "source": "s3://v", "key": "a", "size": 1, "etag": "x\\u0101", '
        b'"modified_us": 1}',
        b'{"speechmill": 1, "source": "s3://v", "key": "a", "size": 1, "etag": "x\\r\\nHost: y", '
        b'"modified_us": 1}',
        b'{"Type": "Notification", "Message": "no JSON"}',
        b"[" * 100_000,
        b'{"action": "PutObject", "bucket": "b", "object": 3}',
    ],
)
def test_what_says_nothing_is_poison(body: bytes) -> None:
    with pytest.raises(PoisonError):
        read_notices(Message(body))


@given(st.binary(max_size=300), st.sampled_from(["", "/buckets/src/a.wav"]))
def test_any_bytes_are_notices_or_poison(body: bytes, key: str) -> None:
    with contextlib.suppress(PoisonError):
        read_notices(Message(body, key))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["speechmill", "Records", "s3", "object", "key", "bucket", "name", "eventName",
             "action", "detail-type", "detail", "Type", "Message", "source", "size"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_notices_or_poison(told: object) -> None:
    with contextlib.suppress(PoisonError):
        event(told)


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def entry(name: str, *, directory: bool = False) -> bytes:
    return field(1, name.encode()) + (b"\x10\x01" if directory else b"") + field(4, b"\x08\x05")


def test_events_of_a_filer() -> None:
    path = "/buckets/voices/p225/ü.flac"
    new, old = field(2, entry("ü.flac")), field(1, entry("ü.flac"))
    for body, created, removed in (
        (new, path, ""),
        (old + new, path, ""),
        (old, "", path),
        (old + field(2, entry("z.flac")), "/buckets/voices/p225/z.flac", path),
        (old + new + field(4, b"/buckets/voices/p226"), "/buckets/voices/p226/ü.flac", path),
        (field(2, entry("p225", directory=True)), "", ""),
    ):
        found = read_filer_event(path, body)
        assert (found.created, found.removed) == (created, removed)
    (notice,) = read_notices(Message(new, path))
    assert (notice.kind, notice.source, notice.key) == ("created", "s3://voices", "p225/ü.flac")
    for own in (
        "/buckets/.system/owners/x",
        "/buckets/voices/.uploads/1/0001.part",
        "/buckets",
        "/etc/x",
    ):
        parent = field(4, own.rpartition("/")[0].encode())
        assert read_notices(Message(new + parent, own)) == []
    with pytest.raises(PoisonError, match="nor an event of a filer"):
        read_notices(Message(b"\xff\xff", path))
