"""A store with one writer, as the user vouches: puts need no conditions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechmill.storage.base import CHECKS, Blob, Object, Store

__all__ = ["SingleWriter"]


class SingleWriter:
    """Makes every put unconditional, for stores that have no conditional puts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """See ``Store``."""
        return self._store.url

    def list(self, prefix: str = "") -> Iterator[Object]:
        """See ``Store``."""
        return self._store.list(prefix)

    def get(self, key: str) -> Blob:
        """See ``Store``."""
        return self._store.get(key)

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """See ``Store``."""
        return self._store.read(key, start, length, etag=etag)

    def head(self, key: str) -> Object:
        """See ``Store``."""
        return self._store.head(key)

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        """Write the object over any other of that key."""
        del if_absent, if_etag
        return self._store.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        """See ``Store``."""
        self._store.put_file(key, path)

    def delete(self, key: str) -> None:
        """See ``Store``."""
        self._store.delete(key)

    def check(self) -> None:
        """Prove that the store can be written; conditions are not needed."""
        key = f"{CHECKS}/single-writer"
        self._store.put(key, b"")
        self._store.delete(key)
