"""Map the errors of obstore, botocore and urllib3 to ours, and retry transient ones."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import botocore.exceptions
import obstore.exceptions
import urllib3.exceptions

from speechmill.errors import (
    AccessDeniedError,
    ArchivedError,
    ConflictError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)

__all__ = ["Retrier", "error_of_reply"]

# Doubling from the time of a few requests to one after which a throttled store has recovered.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 8.0
FIRST_CONTACT_S = 10.0
"""A host that never answered is given up after this long: most likely its name is wrong."""

T = TypeVar("T")

_FOREIGN = (
    StorageError,
    OSError,  # obstore's FileNotFoundError, timeouts
    obstore.exceptions.BaseError,
    botocore.exceptions.BotoCoreError,
    urllib3.exceptions.HTTPError,
)
_CONFLICTS = (
    obstore.exceptions.AlreadyExistsError,
    obstore.exceptions.PreconditionError,
    obstore.exceptions.NotModifiedError,
)
_DENIALS = (
    obstore.exceptions.PermissionDeniedError,
    obstore.exceptions.UnauthenticatedError,
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.SSOError,
)
_UNSUPPORTED = (obstore.exceptions.NotSupportedError, obstore.exceptions.InvalidPathError)
_UNREACHED = (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectTimeoutError)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{0,300})</Message>")
_TRANSIENT = {
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_DENIED = {
    "AccessDenied": "the key is valid, but may not do this: give it the permission",
    "ExpiredToken": "the credentials have expired: log in again (aws sso login, or new keys)",
    "InvalidAccessKeyId": "the store does not know the access key: check aws_access_key_id, and "
    "that the endpoint is the store that gave it out",
    "InvalidToken": "the session token is wrong: check aws_session_token",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "SignatureDoesNotMatch": "the secret key is wrong: check aws_secret_access_key",
    "Unauthorized": "the store does not accept the keys: check the profile and the endpoint",
}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "InvalidRegionName"}


def error_of_reply(
    status: int, code: str, message: str, *, what: str, bucket: str = ""
) -> StorageError:
    """Map an S3 reply (HTTP status, error code and message) to our error.

    ``what`` says what was being done to which object. UnavailableError is worth a retry.
    """
    said = ": ".join(filter(None, (f"{status} {code}".strip(), message)))
    if code == "NoSuchBucket":
        return NotFoundError(f"{what}: there is no bucket {bucket!r} there")
    if code in _TRANSIENT or status in (408, 429) or (status >= 500 and status != 501):
        return UnavailableError(f"{what}: the store answers {said}")
    if status == 404:
        return NotFoundError(f"{what}: there is no such object")
    if status in (304, 409, 412):
        return ConflictError(f"{what}: the object is not as it was ({said})")
    if code == "InvalidObjectState":
        return ArchivedError(
            f"{what}: the object is in an archive, as Glacier is one ({said}): restore it (aws "
            "s3api restore-object), and once that is done, the same command takes it"
        )
    if status in (401, 403) or code in _DENIED:
        hint = _DENIED.get(code, "check the keys, their permissions, and the bucket's name")
        return AccessDeniedError(f"{what}: access denied ({said}); {hint}")
    if 300 <= status < 400 or code in _ELSEWHERE:
        return StorageError(
            f"{what}: the bucket is in another region or at another endpoint ({said}): "
            "set --region or --endpoint-url"
        )
    if status == 501:
        return UnsupportedError(f"{what}: the store cannot do this ({said})")
    return StorageError(f"{what}: the store refuses ({said})")


def _translate(error: Exception, what: str, bucket: str) -> tuple[StorageError, bool]:
    """Map an error to ours. Also returns whether the host has answered at all."""
    if isinstance(error, StorageError):
        return error, True
    text = str(error)
    if status := _STATUS.search(text):
        code, message = _CODE.search(text), _MESSAGE.search(text)
        return error_of_reply(
            int(status[1]),
            code[1] if code else "",
            message[1] if message else "",
            what=what,
            bucket=bucket,
        ), True
    reason = _reason(text)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{what}: there is no such object"), True
    if isinstance(error, _CONFLICTS):
        return ConflictError(f"{what}: the object is not as it was"), True
    if isinstance(error, _DENIALS):
        denied = f"{what}: access denied; check the credentials ({reason})"
        return AccessDeniedError(denied), True
    if isinstance(error, _UNSUPPORTED):
        return UnsupportedError(f"{what}: the store cannot do this ({reason})"), True
    reached = "kind: Connect" not in text and not isinstance(error, _UNREACHED)
    return UnavailableError(f"{what}: {reason}"), reached


def _reason(text: str) -> str:
    """Say in a line why it failed, without URLs: those may carry signatures."""
    for sign, reason in (
        ("dns error", "the host's name cannot be resolved"),
        ("invalid peer certificate", "the host's TLS certificate is not trusted"),
        ("kind: Connect", "cannot connect"),
        ("kind: Timeout", "no answer in time"),
        ("kind: Interrupted", "the connection was lost"),
        ("HTTP error", "the connection failed"),
    ):
        if sign in text:
            return reason
    line = text.partition("\n")[0]
    return re.sub(r"https?://\S+", "…", line)[:300]


class Retrier:
    """Runs requests, and retries transient failures with exponential backoff and jitter.

    ``retry_s``: for how many seconds one request is retried. ``host`` is named in errors.
    Thread-safe.
    """

    def __init__(self, retry_s: float, host: str, bucket: str) -> None:
        self._retry_s = retry_s
        self._host = host
        self._bucket = bucket
        self._reached = threading.Event()

    def call(self, what: str, action: Callable[[], T], *, once: bool = False) -> T:
        """Run ``action``, and return its result. ``what`` says what it does, for errors.

        ``once``: do not retry, only map errors.

        Raises:
            UnavailableError: it still fails after ``retry_s`` seconds.
            StorageError: it fails in a way that a retry cannot mend; see ``error_of_reply``.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                result = action()
            except _FOREIGN as error:
                failure, reached = _translate(error, what, self._bucket)
            else:
                self._reached.set()
                return result
            if reached:
                self._reached.set()
            if not isinstance(failure, UnavailableError):
                raise failure from None
            limit = self._retry_s if self._reached.is_set() else FIRST_CONTACT_S
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 10))
            pause *= random.uniform(0.5, 1.0)  # noqa: S311 spreads clients, hides nothing
            elapsed = time.monotonic() - started
            if once or elapsed + pause > min(limit, self._retry_s):
                raise UnavailableError(
                    f"{failure} (host {self._host}; tried {attempt} times in {elapsed:.0f} s)"
                ) from None
            time.sleep(pause)
