"""Stores that obstore opens: memory, Google, Azure, and the base of S3."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.store import AzureStore, GCSStore, MemoryStore

from speechmill.errors import (
    ConflictError,
    JobError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from speechmill.storage.base import Blob, Object, StoreOptions, check_store
from speechmill.storage.faults import Retrier
from speechmill.storage.urls import Location

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

__all__ = [
    "NO_RETRIES",
    "RemoteStore",
    "client_config",
    "lost_by_fork",
    "nameable",
    "open_cloud",
    "open_memory",
]

NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(0)}
"""Retrying is ours (``Retrier``): obstore's own covers neither cut bodies nor all statuses."""

READ_STALL_S = 30.0
WRITE_STALL_S = 120.0
"""How long a connection may be silent. For a write this includes the time to send the object."""

LIST_CHUNK = 1_000  # S3's own page
_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|(?:^|/)\.{0,2}(?:/|$)")


def nameable(key: str) -> bool:
    """Whether obstore can name a key: no empty, ``.`` or ``..`` component, no control characters,
    no bytes that are not UTF-8."""
    return _UNNAMEABLE.search(key) is None


def client_config(*, allow_http: bool, writing: bool) -> ClientConfig:
    """Configure obstore's HTTP client: time limits on silence, not on the length of a transfer."""
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=WRITE_STALL_S if writing else READ_STALL_S),
        "timeout": timedelta(days=1),
    }


class _ObstoreThreads:
    """Whether obstore's threads run in this process. A fork has none of its parent's threads, but
    obstore does not know it there: any call would wait for ever."""

    started = False
    lost = False

    @classmethod
    def after_fork(cls) -> None:
        cls.lost = cls.lost or cls.started


os.register_at_fork(after_in_child=_ObstoreThreads.after_fork)


def lost_by_fork() -> bool:
    """Whether obstore cannot be used here, because this process was forked off one that used it."""
    return _ObstoreThreads.lost


def _mark_used(client: ObjectStore, url: str) -> ObjectStore:
    if _ObstoreThreads.lost:
        raise UnsupportedError(
            f"{url} cannot be used in a process that was forked off one that has used a store: "
            'start it by "spawn" or "forkserver" (multiprocessing_context of a DataLoader)'
        )
    _ObstoreThreads.started = True
    return client


class RemoteStore:
    """A store that obstore opens. See ``Store``.

    ``reader`` and ``writer`` are the same bucket, with their own time limits.
    """

    def __init__(
        self, location: Location, reader: ObjectStore, writer: ObjectStore, retrier: Retrier
    ) -> None:
        self.url = location.url
        self._location = location
        self._clients = reader, writer
        self._retrier = retrier
        self._start = f"{location.prefix}/" if location.prefix else ""
        # Their listings know milliseconds, their replies to a GET only seconds.
        self._time_unit_us = 1 if location.scheme == "memory" else 10**6

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def _reader(self) -> ObjectStore:
        return _mark_used(self._clients[0], self.url)

    @property
    def _writer(self) -> ObjectStore:
        return _mark_used(self._clients[1], self.url)

    def list(self, prefix: str = "") -> Iterator[Object]:
        """See ``Store.list``."""
        start = "/".join(filter(None, (self._location.prefix, prefix.strip("/"))))
        stream = obstore.list(self._reader, start or None, chunk_size=LIST_CHUNK)
        what = f"listing {self.url}"
        while True:
            # A stream that has failed must not be asked again: it might end there, in silence.
            chunk = self._retrier.call(what, lambda: next(stream, None), once=True)
            if chunk is None:
                return
            for meta in chunk:
                yield self._object(meta)

    def get(self, key: str) -> Blob:
        """See ``Store.get``."""
        full, what = self._full(key), f"reading {self.url}/{key}"

        def action() -> Blob:
            result = obstore.get(self._reader, full)
            meta, data = result.meta, result.bytes().to_bytes()
            _check_length(len(data), meta["size"], what)
            return Blob(data, _etag(meta), self._modified_us(meta))

        return self._retrier.call(what, action)

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """See ``Store.read``."""
        full, what = self._full(key), f"reading {self.url}/{key}"
        if length == 0:
            if self.head(key).etag != etag:
                raise ConflictError(f"{what}: the object is not as it was")
            return b""

        def action() -> bytes:
            result = obstore.get(
                self._reader,
                full,
                options={"if_match": _quoted(etag), "range": (start, start + length)},
            )
            if _etag(result.meta) != etag:
                raise ConflictError(f"{what}: the object is not as it was")
            first, end = result.range
            if end - first != length:
                size = result.meta["size"]
                raise StorageError(f"{what}: it has {size} bytes, not {start + length}")
            data = result.bytes().to_bytes()
            _check_length(len(data), length, what)
            return data

        return self._retrier.call(what, action)

    def head(self, key: str) -> Object:
        """See ``Store.head``."""
        full = self._full(key)
        meta = self._retrier.call(
            f"looking at {self.url}/{key}", lambda: obstore.head(self._reader, full)
        )
        return self._object(meta)

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        """See ``Store.put``."""
        full, what = self._full(key), f"writing {self.url}/{key}"
        mode: PutMode = "create" if if_absent else "overwrite"
        if if_etag is not None:
            mode = {"e_tag": _quoted(if_etag)}
            if self._location.scheme == "gs":
                version = self._generation(full, if_etag, what)
                if version is not None:
                    mode["version"] = version

        def action() -> str | None:
            return obstore.put(self._writer, full, data, mode=mode, use_multipart=False)["e_tag"]

        try:
            etag = self._retrier.call(what, action)
        except NotFoundError as error:
            if if_etag is None or "no bucket" in str(error):
                raise
            raise ConflictError(f"{what}: the object is gone") from None
        return etag.strip('"') if etag else self.head(key).etag

    def put_file(self, key: str, path: Path) -> None:
        """See ``Store.put_file``. A large file is uploaded in parts."""
        full = self._full(key)
        self._retrier.call(
            f"writing {self.url}/{key}", lambda: obstore.put(self._writer, full, path)
        )

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        full = self._full(key)
        with contextlib.suppress(NotFoundError):
            self._retrier.call(
                f"deleting {self.url}/{key}", lambda: obstore.delete(self._writer, full)
            )

    def check(self) -> None:
        """See ``Store.check``."""
        check_store(self)

    def _full(self, key: str) -> str:
        full = self._start + key
        if not nameable(full):
            raise UnsupportedError(f"{self.url}: {key!a} cannot be a key here")
        return full

    def _generation(self, full: str, etag: str, what: str) -> str | None:
        """Look up the generation of this version: Google's conditional puts ask for it."""
        meta = self._retrier.call(what, lambda: obstore.head(self._writer, full))
        if _etag(meta) != etag:
            raise ConflictError(f"{what}: the object is not as it was")
        return meta["version"]

    def _object(self, meta: ObjectMeta) -> Object:
        return Object(
            meta["path"].removeprefix(self._start),
            meta["size"],
            _etag(meta),
            self._modified_us(meta),
        )

    def _modified_us(self, meta: ObjectMeta) -> int:
        us = (meta["last_modified"] - _EPOCH) // _MICROSECOND
        return us - us % self._time_unit_us


def _etag(meta: ObjectMeta) -> str:
    return (meta["e_tag"] or "").strip('"')


def _quoted(etag: str) -> str:
    return etag if etag.startswith("W/") else f'"{etag}"'


def _check_length(found: int, size: int, what: str) -> None:
    if found != size:
        raise UnavailableError(f"{what}: {found} bytes came, not {size}")


def open_memory(location: Location) -> RemoteStore:
    """Open the store of that name in this process; create it where there is none."""
    with _memory_lock:
        store = _memory.setdefault(location.bucket, MemoryStore())
    return RemoteStore(location, store, store, Retrier(0.0, "memory", location.bucket))


def open_cloud(location: Location, options: StoreOptions) -> RemoteStore:
    """Open Google or Azure, with the credentials that obstore finds in the environment."""
    retrier = Retrier(options.retry_s, f"{location.scheme}://", location.bucket)
    kind = GCSStore if location.scheme == "gs" else AzureStore
    try:
        reader, writer = (
            kind(
                location.bucket,
                client_options=client_config(allow_http=False, writing=writing),
                # Listings are streams, which only obstore itself can go on with.
                retry_config={"retry_timeout": timedelta(seconds=options.retry_s)},
                config={"skip_signature": options.anonymous},
            )
            for writing in (False, True)
        )
    except obstore.exceptions.BaseError as error:
        reason = str(error).partition("\n")[0]
        raise JobError(f"{location.url} cannot be opened: {reason}") from None
    return RemoteStore(location, reader, writer, retrier)
