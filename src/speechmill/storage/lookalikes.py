"""Names that some stores take for one: disks that do not tell upper from lower case apart."""

from __future__ import annotations

import tempfile
import unicodedata
import uuid
from collections.abc import Iterable
from pathlib import Path

from speechmill.errors import JobError, NotFoundError
from speechmill.storage.base import Store

__all__ = ["alike", "check_distinct", "folded", "tells_apart"]


def folded(key: str) -> str:
    """What two keys have in common that such a disk takes for one: without case, and with each
    letter written in one way."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", key).casefold())


def tells_apart(store: Store, prefix: str = "speechmill-") -> bool:
    """Try, on a scratch object below ``prefix``, whether the store tells upper from lower case."""
    name = f"{prefix}{uuid.uuid4().hex}-"
    with tempfile.NamedTemporaryFile(prefix="speechmill-") as empty:
        store.put_file(f"{name}a", Path(empty.name))
    try:
        store.head(f"{name}A")
    except NotFoundError:
        return True
    else:
        return False
    finally:
        store.delete(f"{name}a")


def check_distinct(
    store: Store, keys: Iterable[str], advice: str, *, scratch: str = "speechmill-"
) -> None:
    """Make sure that no two of these keys are one object in the store, before any is written.

    Only where two are alike the store is tried, by an object whose key begins with ``scratch``.

    Raises:
        JobError: two are; ``advice`` says what to do instead.
    """
    seen: dict[str, str] = {}
    for key in keys:
        other = seen.setdefault(folded(key), key)
        if other != key:
            if tells_apart(store, scratch):
                return
            raise JobError(alike(store, other, key, advice))


def alike(store: Store, one: str, other: str, advice: str) -> str:
    """Say that a store takes two keys for one."""
    return (
        f"{store.url} does not tell upper from lower case, so {one!r} and {other!r} would "
        f"overwrite each other there: {advice}"
    )
