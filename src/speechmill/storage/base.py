"""The Protocol of object stores, the values that it uses, and the check of conditional puts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from speechmill.errors import ConflictError, StorageError, UnsupportedError

__all__ = ["CHECKS", "Blob", "Object", "Store", "StoreOptions", "check_store"]

CHECKS = "_speechmill/check"
CHECK_LEFTOVER_S = 24 * 3600.0
"""Older scratch objects are of killed builds. In a folder their times are by the clocks of their
writers, which may differ by hours."""


@dataclass(frozen=True, slots=True)
class Object:
    """A listed object.

    ``key`` is relative to the store's URL; bytes that are not UTF-8 appear as surrogate escapes.
    ``size`` is in bytes. ``etag`` names this version: for local files the modification time in
    nanoseconds as a decimal string, else the store's ETag without its quotes. ``modified_us`` is
    in microseconds since 1970, UTC.

    An empty ``etag`` means that the listing could not open the object (a folder without permission,
    a dangling link): ``get`` then says why.
    """

    key: str
    size: int
    etag: str
    modified_us: int


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes, with the etag and time (µs since 1970, UTC) of exactly these bytes."""

    data: bytes
    etag: str
    modified_us: int


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Holds no secrets, and may be pickled.

    ``profile`` names a profile of the AWS files. ``endpoint_url`` and ``region`` override those
    of the profile. ``retry_s``: for how many seconds a failing request is retried.
    ``anonymous``: requests are not signed, for public buckets. ``request_payer``: whoever the keys
    belong to pays for the requests, for buckets that ask for it (S3 only).
    """

    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    retry_s: float = 60.0
    anonymous: bool = False
    request_payer: bool = False


class Store(Protocol):
    """A place with objects. Thread-safe.

    Every method may raise AccessDeniedError, or UnavailableError once retries are used up.
    Transient failures are retried inside. A conditional put whose reply was lost may conflict with
    its own success on the retry: it then raises ConflictError, and the caller reads the object
    again to find out.
    """

    @property
    def url(self) -> str:
        """The normalised URL: no secrets, no trailing slash; for folders the absolute path."""

    def list(self, prefix: str = "") -> Iterator[Object]:
        """List everything below ``prefix`` (whole path components, or ""), in a stable order.

        Streams: memory does not grow with the number of objects, except for the names of the
        directories being listed. Folder markers (empty, ending in "/") are left out.

        Raises:
            NotFoundError: there is no such bucket, or the store's folder does not exist.
        """

    def get(self, key: str) -> Blob:
        """Read the whole object.

        Raises:
            NotFoundError: there is none.
        """

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """Read ``length`` bytes from byte ``start``, of the version ``etag`` and no other.

        Raises:
            ConflictError: the object has another etag by now.
            NotFoundError: there is none.
            StorageError: it does not have these bytes.
        """

    def head(self, key: str) -> Object:
        """Look up the object's size, etag and time.

        Raises:
            NotFoundError: there is none.
        """

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        """Write the object, whole or not at all. Returns its etag.

        Raises:
            ConflictError: with ``if_absent``, there is one; with ``if_etag``, it has another etag
                or is gone.
            UnsupportedError: the store cannot do that, or cannot have such a key.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Write the object from a local file, whole or not at all, over any object of that key.

        The file may be of any size; it is not held in memory.

        Raises:
            UnsupportedError: the store cannot have such a key.
        """

    def delete(self, key: str) -> None:
        """Remove the object; no error if there is none."""

    def check(self) -> None:
        """Prove, on a scratch object, that the store can be written and honours conditions.

        Raises:
            UnsupportedError: the store does not honour conditional puts.
            AccessDeniedError: the credentials do not allow writing, or reading back.
        """


def check_store(store: Store) -> None:
    """Implement ``Store.check`` by the store's other methods, and remove what killed ones left."""
    key = f"{CHECKS}/{uuid.uuid4().hex}"
    try:
        _check_conditions(store, key)
        _remove_leftovers(store)
    finally:
        # A scratch object that cannot be removed is no reason to refuse the store.
        with contextlib.suppress(StorageError):
            store.delete(key)


def _remove_leftovers(store: Store) -> None:
    with contextlib.suppress(StorageError):
        found = list(store.list(CHECKS))
        now_us = max((o.modified_us for o in found), default=0)  # ours, by the store's clock
        for left in found:
            if now_us - left.modified_us > CHECK_LEFTOVER_S * 1e6:
                store.delete(left.key)


def _check_conditions(store: Store, key: str) -> None:
    try:
        first = store.put(key, b"first", if_absent=True)
    except ConflictError:  # nobody else knows the key: a retry met its own success
        first = store.head(key).etag
    if not _conflicts(store, key, if_absent=True):
        raise _unsupported(store, "creating an object that is there already")
    with contextlib.suppress(ConflictError):
        store.put(key, b"second", if_etag=first)
    if store.get(key).data != b"second":
        raise _unsupported(store, "replacing an object on the condition that it is unchanged")
    if not _conflicts(store, key, if_etag=first):
        raise _unsupported(store, "replacing an object that has changed")


def _conflicts(
    store: Store, key: str, *, if_absent: bool = False, if_etag: str | None = None
) -> bool:
    try:
        store.put(key, b"must not be written", if_absent=if_absent, if_etag=if_etag)
    except ConflictError:
        return True
    return False


def _unsupported(store: Store, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{store.url} does not honour conditional puts ({what} did not do what it should): "
        "two builds at once could overwrite each other's rows. Use another store, or vouch with "
        "--single-writer that nothing else writes to it."
    )
