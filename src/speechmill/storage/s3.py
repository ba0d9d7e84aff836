"""Buckets that speak S3: AWS, R2, SeaweedFS, MinIO, Ceph and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from obstore.store import S3Store as ObstoreS3

from speechmill.errors import AccessDeniedError, ConflictError
from speechmill.storage.base import Blob, Object, StoreOptions
from speechmill.storage.credentials import KEY_ERRORS, S3Access, frozen_keys, resolve
from speechmill.storage.faults import Retrier
from speechmill.storage.remote import NO_RETRIES, RemoteStore, client_config, lost_by_fork, nameable
from speechmill.storage.signed import SignedClient
from speechmill.storage.urls import Location

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential

__all__ = ["S3Store"]

T = TypeVar("T")

CREDENTIALS_TTL = timedelta(minutes=10)
"""obstore asks again 5 minutes before this has passed; botocore renews keys that expire 10 to 15
minutes ahead, so what obstore holds is never stale."""


class _KeyProvider:
    """Gives obstore the keys, and fresh ones when they expire."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self.failure: Exception | None = None

    def __call__(self) -> S3Credential:
        try:
            frozen = frozen_keys(self._credentials)
        except KEY_ERRORS as error:
            self.failure = error  # obstore would bury it in a general error
            raise
        self.failure = None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_TTL,
        }


class _S3Retrier(Retrier):
    """Does not retry once a login has expired."""

    def __init__(self, retry_s: float, host: str, bucket: str, provider: _KeyProvider) -> None:
        super().__init__(retry_s, host, bucket)
        self._provider = provider

    def call(self, what: str, action: Callable[[], T], *, once: bool = False) -> T:
        """See ``Retrier.call``."""

        def checked() -> T:
            try:
                return action()
            except Exception:
                if self._provider.failure is not None:
                    raise AccessDeniedError(
                        f"{what}: the credentials could not be renewed "
                        f"({type(self._provider.failure).__name__}): log in again"
                    ) from None
                raise

        return super().call(what, checked, once=once)


class S3Store(RemoteStore):
    """A bucket, or a prefix in it. See ``Store``.

    A fork of a process that has used obstore still reads, by plain signed requests. It must open
    a store of its own.
    """

    def __init__(self, location: Location, options: StoreOptions) -> None:
        access = resolve(location.bucket, options)
        provider = _KeyProvider(access.credentials)
        retrier = _S3Retrier(
            options.retry_s, urlsplit(access.endpoint_url).netloc, location.bucket, provider
        )
        super().__init__(
            location,
            _open_bucket(access, provider, writing=False),
            _open_bucket(access, provider, writing=True),
            retrier,
        )
        self._signed = SignedClient(access, retrier)

    def list(self, prefix: str = "") -> Iterator[Object]:
        """See ``Store.list``."""
        below = self._start + (f"{prefix.strip('/')}/" if prefix.strip("/") else "")
        cut = len(self._start)
        for found in self._signed.list(below):
            yield Object(found.key[cut:], found.size, found.etag, found.modified_us)

    def get(self, key: str) -> Blob:
        """See ``Store.get``."""
        if self._by_obstore(key):
            return super().get(key)
        return self._signed.get(self._start + key)

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """See ``Store.read``."""
        if length == 0 or self._by_obstore(key):
            return super().read(key, start, length, etag=etag)
        wanted = {"Range": f"bytes={start}-{start + length - 1}", "If-Match": f'"{etag}"'}
        blob = self._signed.get(self._start + key, wanted)
        if blob.etag != etag or len(blob.data) != length:
            raise ConflictError(f"reading {self.url}/{key!a}: the object is not as it was")
        return blob.data

    def head(self, key: str) -> Object:
        """See ``Store.head``."""
        if self._by_obstore(key):
            return super().head(key)
        return replace(self._signed.head(self._start + key), key=key)

    def _by_obstore(self, key: str) -> bool:
        return nameable(self._start + key) and not lost_by_fork()


def _open_bucket(access: S3Access, provider: _KeyProvider, *, writing: bool) -> ObstoreS3:
    # Every setting that obstore would else take from the environment is given.
    config: S3Config = {
        "endpoint": access.endpoint_url,
        "aws_endpoint_url_s3": access.endpoint_url,
        "region": access.region,
        "virtual_hosted_style_request": False,
        "conditional_put": "etag",
        "disable_bulk_delete": True,  # not every S3 has it
        "skip_signature": access.credentials is None,
        "request_payer": access.request_payer,
    }
    client = client_config(allow_http=access.endpoint_url.startswith("http:"), writing=writing)
    if access.ca_bundle:
        client["root_certificate"] = Path(access.ca_bundle).read_bytes()
    return ObstoreS3(
        access.bucket,
        config=config,
        client_options=client,
        retry_config=NO_RETRIES,
        credential_provider=provider if access.credentials is not None else None,
    )
