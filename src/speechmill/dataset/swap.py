"""Compare-and-swap, by which every object of a sink is changed.

Read the object with its ETag, compute the new one, put it on the condition that the ETag is
unchanged; on a conflict start again. A put whose reply was lost conflicts with its own success,
finds its change made, and writes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from speechmill.errors import ConflictError, NotFoundError
from speechmill.storage import Store

__all__ = ["stored", "update"]

MAX_CONFLICTS = 200  # with the waits below some minutes: more is another program, not other workers
FIRST_WAIT_S = 0.01  # about a request to a near store
LONGEST_WAIT_S = 2.0


def stored(store: Store, key: str) -> bytes | None:
    """The object's bytes; None where there is no object."""
    try:
        return store.get(key).data
    except NotFoundError:
        return None


def update(store: Store, key: str, change: Callable[[bytes | None], bytes | None]) -> int:
    """Compare-and-swap one object.

    ``change`` gets the object's bytes (None where there is no object) and returns the new ones, or
    None to leave it as it is. It may be called several times. Returns the number of conflicts.

    Raises:
        ConflictError: others kept changing the object.
        UnavailableError: the store stays down.
    """
    wait_s = FIRST_WAIT_S
    for conflicts in range(MAX_CONFLICTS):
        try:
            blob = store.get(key)
        except NotFoundError:
            old, etag = None, None
        else:
            old, etag = blob.data, blob.etag
        new = change(old)
        if new is None:
            return conflicts
        try:
            store.put(key, new, if_absent=etag is None, if_etag=etag)
        except ConflictError:
            time.sleep(wait_s * random.random())  # noqa: S311 - jitter is no secret
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        else:
            return conflicts
    raise ConflictError(
        f"{store.url}/{key} was changed by others {MAX_CONFLICTS} times while it was being "
        "written; is another program writing to this sink?"
    )
