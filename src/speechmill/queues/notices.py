"""Encode and parse messages about recordings: our own, and the events of object stores.

The events are those of S3 as AWS (also through SNS and EventBridge), MinIO and others send them,
those of Cloudflare R2, and those of SeaweedFS' filer.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

from speechmill.queues.base import Message
from speechmill.queues.filer import read_filer_event
from speechmill.records import Part, Recording
from speechmill.storage.urls import parse_url

__all__ = ["Notice", "PoisonError", "encode", "key_below", "read_notices"]

VERSION = 1  # of our own messages
BUCKETS = "/buckets/"  # the directory of SeaweedFS' filer that holds them
Kind = Literal["created", "removed"]
_R2: Final[Mapping[str, Kind]] = {
    "PutObject": "created",
    "CopyObject": "created",
    "CompleteMultipartUpload": "created",
    "DeleteObject": "removed",
    "LifecycleDeletion": "removed",
}
MAX_PARTS = 1_000_000  # of a folder: of half an hour each, more speech than there is
MAX_NUMBER = 2**62  # bytes, and microseconds of 146,000 years
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")


class PoisonError(Exception):
    """A message that cannot be parsed, however often it is delivered."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An object that was created or changed, or removed.

    Our own messages name the ``source``, the version of the ``recording``, and the number of
    ``parts`` that the plan gave its folder. Events name the bucket as ``source`` (``s3://bucket``)
    and the whole key; the store is asked for the version, because events are late, repeated, and
    out of order.
    """

    kind: Kind
    source: str
    key: str
    recording: Recording | None = None
    parts: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it was published by ``enqueue``."""
        return self.recording is not None


def encode(source: str, recording: Recording, part: Part) -> Message:
    """Encode a recording as a message. Recordings of one part share a key."""
    body = {
        "speechmill": VERSION,
        "source": source,
        "key": recording.key,
        "size": recording.size,
        "etag": recording.etag,
        "modified_us": recording.modified_us,
        "parts": part.count,
    }
    # ASCII: keys that are not UTF-8 come through as surrogate escapes.
    return Message(json.dumps(body).encode(), f"{part.folder_name}/{part.index}")


def key_below(source: str, notice: Notice) -> str | None:
    """Return the notice's object as a key of the source; None where it lies elsewhere."""
    if notice.is_ours:
        return notice.key if notice.source == source else None
    here, there = parse_url(source), parse_url(notice.source)
    if (here.scheme, here.bucket) != (there.scheme, there.bucket):
        return None
    start = f"{here.prefix}/" if here.prefix else ""
    key = notice.key.removeprefix(start)
    return key if notice.key.startswith(start) and key else None


def read_notices(message: Message) -> list[Notice]:
    """Parse a message; empty for an event that concerns no recording.

    Raises:
        PoisonError: it is neither a message of ours nor a known event.
    """
    body = message.body.lstrip()
    if message.key.startswith("/") and not body.startswith(b"{"):  # a path of a filer's
        return list(_of_filer(message))
    try:
        told = json.loads(message.body)
    except (ValueError, RecursionError) as error:
        raise PoisonError(f"it is not JSON: {error}") from None
    if not isinstance(told, Mapping):
        raise PoisonError("it is JSON, but no object")
    try:
        return list(_notices(told))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PoisonError(f"it is not as it should be: {type(error).__name__}: {error}") from None


def _notices(told: Mapping[str, Any]) -> Iterator[Notice]:
    if "speechmill" in told:
        yield _of_ours(told)
    elif isinstance(told.get("Records"), list):
        for record in told["Records"]:
            yield from _of_s3(record)
    elif told.get("Type") == "Notification":  # SNS
        yield from _notices(json.loads(told["Message"]))
    elif "detail-type" in told:
        yield from _of_event_bridge(told)
    elif {"action", "bucket", "object"} <= told.keys():
        yield from _of_r2(told)
    elif told.get("Event") != "s3:TestEvent":
        raise PoisonError(
            "it is neither a recording of ours nor an event of an object store that we know"
        )


def _of_ours(told: Mapping[str, Any]) -> Notice:
    if told["speechmill"] != VERSION:
        raise PoisonError(
            f"it is of version {told['speechmill']!r}, this Speechmill reads {VERSION}"
        )
    source, key, etag = told["source"], told["key"], told["etag"]
    if not (isinstance(source, str) and isinstance(key, str) and isinstance(etag, str) and source):
        raise PoisonError("source, key and etag must be text")
    if not (etag.isascii() and etag.isprintable()):  # no request can ask for it
        raise PoisonError("its etag is none that a store gives")
    size, modified_us = _number(told, "size", 0), _number(told, "modified_us", -MAX_NUMBER)
    parts = _number({"parts": 1, **told}, "parts", 1, MAX_PARTS)
    return _notice("created", source, key, Recording(key, size, etag, modified_us), parts)


def _number(told: Mapping[str, Any], name: str, low: int, high: int = MAX_NUMBER) -> int:
    found = told[name]
    if type(found) is not int or not low <= found <= high:
        raise PoisonError(f"{name} must be a whole number, not {reprlib.repr(found)}")
    return found


def _notice(
    kind: Kind, source: str, key: object, recording: Recording | None = None, parts: int = 1
) -> Notice:
    """Make a notice of a key that a store can have.

    Raises:
        PoisonError: none can.
    """
    if not isinstance(key, str) or not key:
        raise PoisonError(f"{reprlib.repr(key)} is no object's key")
    try:
        key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PoisonError(f"{reprlib.repr(key)} is no object's key: it is not Unicode") from None
    return Notice(kind, source, key, recording, parts)


def _of_bucket(name: object) -> str:
    if not isinstance(name, str) or not _BUCKET.fullmatch(name):
        raise PoisonError(f"{reprlib.repr(name)} is no bucket's name")
    return f"s3://{name}"


def _of_s3(record: Mapping[str, Any]) -> Iterator[Notice]:
    if kind := _kind(str(record["eventName"]).removeprefix("s3:")):
        key = _unquoted(record["s3"]["object"]["key"])
        yield _notice(kind, _of_bucket(record["s3"]["bucket"]["name"]), key)


def _of_event_bridge(told: Mapping[str, Any]) -> Iterator[Notice]:
    if kind := _kind(str(told["detail-type"]).replace(" ", "")):
        detail = told["detail"]
        yield _notice(kind, _of_bucket(detail["bucket"]["name"]), detail["object"]["key"])


def _of_r2(told: Mapping[str, Any]) -> Iterator[Notice]:
    if kind := _R2.get(told["action"]):
        yield _notice(kind, _of_bucket(told["bucket"]), told["object"]["key"])


def _of_filer(message: Message) -> Iterator[Notice]:
    try:
        event = read_filer_event(message.key, message.body)
    except ValueError as error:
        raise PoisonError(f"it is neither JSON nor an event of a filer: {error}") from None
    paths: dict[Kind, str] = {"created": event.created, "removed": event.removed}
    for kind, path in paths.items():
        bucket, _, key = path.removeprefix(BUCKETS).partition("/")
        if not (path.startswith(BUCKETS) and bucket and key):
            continue
        # The filer's own: its users, and pieces of uploads.
        if not (bucket.startswith(".") or key.startswith(".uploads/")):
            yield _notice(kind, _of_bucket(bucket), key)


def _kind(name: str) -> Kind | None:
    """Classify an event by its name, as S3 (ObjectCreated:Put) or EventBridge write it."""
    if name.startswith("ObjectCreated") or name in (
        "ObjectRestore:Completed",
        "ObjectRestoreCompleted",
    ):
        return "created"
    if name.startswith(("ObjectRemoved", "ObjectDeleted", "LifecycleExpiration")):
        return "removed"
    return None


def _unquoted(key: str) -> str:
    """Decode a key of S3's events: percent-encoded, with ``+`` for a space."""
    return unquote_to_bytes(key.replace("+", " ")).decode("utf-8", "surrogateescape")
