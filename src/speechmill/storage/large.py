"""Fetch large objects by ranges into a temporary file, so that memory does not hold them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from speechmill.errors import ConflictError, NoRoomError, StorageError, UnavailableError
from speechmill.machine import Claim, FileMap, is_no_room
from speechmill.records import printable
from speechmill.storage.base import Object, Store

__all__ = ["Fetched", "fetch"]

LARGE_BYTES = 64 * 1024 * 1024
"""Objects up to this size are held in memory: half an hour of 16-bit speech at 16 kHz."""

RANGE_BYTES = 8 * 1024 * 1024  # per request, so that few are needed and a failed one costs little
MAX_RESTARTS = 5  # after the object was replaced during the download


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object's bytes, with the etag and time (µs since 1970, UTC) of exactly these bytes.

    As ``Blob``, but ``data`` of a large object is a map of a temporary file. The file has no name,
    and is gone when the map is.
    """

    data: bytes | FileMap
    etag: str
    modified_us: int


def fetch(store: Store, key: str, size: int) -> Fetched:
    """Fetch a whole object, of one version; in memory only if it is no larger than 64 MiB.

    ``size`` (bytes) is that of the listing; the object may have another one by now.

    Raises:
        NotFoundError: there is none.
        UnavailableError: it keeps being replaced while it is read.
        NoRoomError: the temporary folder has no room for it.
        StorageError: the temporary folder cannot be written to, or another error of ``Store``.
    """
    for attempt in range(MAX_RESTARTS if size > LARGE_BYTES else 0):
        found = store.head(key)
        if found.size <= LARGE_BYTES or not found.etag:  # without an etag, parts may not fit
            break
        try:
            return Fetched(_fetch_ranges(store, key, found), found.etag, found.modified_us)
        except ConflictError:
            if attempt == MAX_RESTARTS - 1:
                raise UnavailableError(
                    f"{store.url}/{printable(key)} keeps changing while it is read"
                ) from None
        time.sleep(0.05 * 2**attempt)
    blob = store.get(key)
    return Fetched(blob.data, blob.etag, blob.modified_us)


def _fetch_ranges(store: Store, key: str, found: Object) -> FileMap:
    """Download this version of the object into a file without a name, and map it."""
    what = f"{store.url}/{printable(key)} ({found.size} bytes)"
    with _naming_the_folder(what):
        # Without a buffer, so that a full disk shows in write, not when the file is closed.
        file = tempfile.TemporaryFile(prefix="speechmill-", buffering=0)  # noqa: SIM115 see below
    claim = Claim()
    with file:
        for start in range(0, found.size, RANGE_BYTES):
            length = min(RANGE_BYTES, found.size - start)
            data = store.read(key, start, length, etag=found.etag)
            with _naming_the_folder(what):
                claim.write(file, data, found.size)
        with _naming_the_folder(what):
            mapped = FileMap(file.fileno())
    claim.keep_for(mapped)
    return mapped


@contextlib.contextmanager
def _naming_the_folder(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "the temporary folder"
        kind = NoRoomError if is_no_room(error) else StorageError
        raise kind(
            f"{what} is held in a temporary file in {where}, and that failed: {error.strerror}; "
            "make room there, or let TMPDIR name another folder"
        ) from None
