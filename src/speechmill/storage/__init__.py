"""Object stores behind one Protocol: S3, Google, Azure, local folders, and memory."""

from __future__ import annotations

from speechmill.errors import JobError
from speechmill.storage.base import Blob, Object, Store, StoreOptions
from speechmill.storage.large import Fetched, fetch
from speechmill.storage.urls import inside, parse_url

__all__ = ["Blob", "Fetched", "Object", "Store", "StoreOptions", "fetch", "inside", "open_store"]


def open_store(url: str, options: StoreOptions = StoreOptions()) -> Store:  # noqa: B008 it is frozen
    """Open the store at ``url``: a path, ``s3://``, ``gs://``, ``az://``, ``file://``, ``memory://NAME``.

    A plain path is taken literally, also with ``%``, ``#`` and ``?``. Opening sends no request; it
    only looks for credentials. ``memory://NAME`` is one store for the whole process.

    Raises:
        JobError: the URL, the profile or the endpoint is wrong, or nobody can pay for requests.
        AccessDeniedError: there are no credentials.
    """
    location = parse_url(url)
    if options.request_payer:
        _check_payer(location.scheme, options)
    # Imported here: each brings its own client along.
    if location.scheme == "file":
        from speechmill.storage.local import LocalStore

        return LocalStore(location.url)
    if location.scheme == "s3":
        from speechmill.storage.s3 import S3Store

        return S3Store(location, options)
    from speechmill.storage.remote import open_cloud, open_memory

    if location.scheme == "memory":
        return open_memory(location)
    return open_cloud(location, options)


def _check_payer(scheme: str, options: StoreOptions) -> None:
    if scheme != "s3":
        raise JobError(
            f"only in buckets of s3:// the requester can pay, not in {scheme}://: leave out "
            "--request-payer"
        )
    if options.anonymous:
        raise JobError(
            "who pays for requests has to sign them: --request-payer and --anonymous exclude each "
            "other"
        )
