"""Make the S3 requests that obstore cannot: list odd keys, and read their objects.

obstore parses every key as a path, and fails the whole listing at the first key that is none. S3
keys are bytes. So listings are parsed here, with keys as bytes, and a key that obstore cannot name
is read by a plain signed request.
"""

from __future__ import annotations

import builtins
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.httpsession
import botocore.utils

from speechmill.errors import AccessDeniedError, UnavailableError
from speechmill.storage.base import Blob, Object
from speechmill.storage.credentials import KEY_ERRORS, S3Access, frozen_keys
from speechmill.storage.faults import Retrier, error_of_reply

__all__ = ["SignedClient"]

CONNECT_TIMEOUT_S = 5.0  # as obstore's, see remote.client_config
READ_TIMEOUT_S = 30.0  # of silence
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class SignedClient:
    """Lists a bucket, and reads any key. Thread-safe. Raises what ``Retrier.call`` raises."""

    def __init__(self, access: S3Access, retrier: Retrier) -> None:
        self._access = access
        self._retrier = retrier
        self._base = f"{access.endpoint_url}/{access.bucket}"
        self._http = botocore.httpsession.URLLib3Session(
            verify=access.ca_bundle or True,
            proxies=botocore.utils.get_environ_proxies(access.endpoint_url),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            max_pool_connections=32,
        )

    def get(self, key: str, headers: Mapping[str, str] | None = None) -> Blob:
        """Read the object, or what ``headers`` (Range, If-Match) ask of it."""
        data, found = self._object("GET", key, headers or {})
        return Blob(data, found.etag, found.modified_us)

    def head(self, key: str) -> Object:
        """Look up the object, with its full key."""
        return self._object("HEAD", key, {})[1]

    def list(self, prefix: str) -> Iterator[Object]:
        """List every object whose key starts with ``prefix``, in S3's order, with its full key."""
        token = ""
        while True:
            query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
            if token:
                query["continuation-token"] = token
            url = f"{self._base}?" + "&".join(f"{k}={_quote(v, '')}" for k, v in query.items())
            what = f"listing s3://{self._access.bucket}/{prefix}"
            objects, token = self._retrier.call(what, lambda: self._page(url, what))  # noqa: B023 called at once
            yield from objects
            if not token:
                return

    def _page(self, url: str, what: str) -> tuple[builtins.list[Object], str]:
        response = self._send("GET", url, {}, what)
        try:
            return _parse_page(response.content)
        except (ET.ParseError, ValueError, KeyError) as error:
            raise UnavailableError(f"{what}: the store's listing cannot be read: {error}") from None

    def _object(self, method: str, key: str, headers: Mapping[str, str]) -> tuple[bytes, Object]:
        what = f"reading s3://{self._access.bucket}/{key!a}"

        def action() -> tuple[bytes, Object]:
            response = self._send(method, f"{self._base}/{_quote(key, '/')}", headers, what)
            size = int(response.headers.get("Content-Length") or len(response.content))
            if method == "GET" and len(response.content) != size:
                raise UnavailableError(f"{what}: {len(response.content)} bytes came, not {size}")
            etag = response.headers.get("ETag", "").strip('"')
            modified = parsedate_to_datetime(response.headers["Last-Modified"])
            found = Object(key, size, etag, round(modified.timestamp()) * 10**6)
            return response.content, found

        return self._retrier.call(what, action)

    def _send(self, method: str, url: str, headers: Mapping[str, str], what: str) -> Any:
        pays = {"x-amz-request-payer": "requester"} if self._access.request_payer else {}
        request = botocore.awsrequest.AWSRequest(method, url, headers={**headers, **pays})
        if self._access.credentials is not None:
            try:
                frozen = frozen_keys(self._access.credentials)
            except KEY_ERRORS as error:
                quotes = isinstance(error, botocore.exceptions.CredentialRetrievalError)
                if isinstance(error, OSError | botocore.exceptions.BotoCoreError) and not quotes:
                    raise  # mapped with those of the request, and tried again where that helps
                raise AccessDeniedError(
                    f"{what}: the credentials could not be renewed ({type(error).__name__}): log "
                    "in again"
                ) from None
            botocore.auth.S3SigV4Auth(frozen, "s3", self._access.region).add_auth(request)
        response = self._http.send(request.prepare())
        if response.status_code not in (200, 206):
            code, message = _error_of(response.content)
            raise error_of_reply(
                response.status_code, code, message, what=what, bucket=self._access.bucket
            )
        return response


def _quote(text: str, safe: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe=f"{safe}-_.~")


def _error_of(body: bytes) -> tuple[str, str]:
    try:
        root = ET.fromstring(body)  # noqa: S314 expat loads nothing, and bounds expansion
    except ET.ParseError:
        return "", ""
    found = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
    return found.get("Code", ""), found.get("Message", "")[:300]


def _parse_page(body: bytes) -> tuple[list[Object], str]:
    """Parse a reply to ListObjectsV2: its objects, and the next page's token ("" at the end)."""
    root = ET.fromstring(body)  # noqa: S314 see _error_of
    space = _NAMESPACE if root.tag.startswith("{") else ""
    if root.tag != f"{space}ListBucketResult":
        raise ValueError(f"it is a {root.tag}")
    encoded = root.findtext(f"{space}EncodingType") == "url"
    objects = []
    for entry in root.iterfind(f"{space}Contents"):
        fields = {child.tag: child.text or "" for child in entry}
        key, size = fields[f"{space}Key"], int(fields[f"{space}Size"])
        if encoded and ("%" in key or "+" in key):
            raw = unquote_to_bytes(key.replace("+", " "))
            key = raw.decode("utf-8", "surrogateescape")
        if size == 0 and key.endswith("/"):
            continue  # a folder marker
        # Cut to whole seconds, as GET and HEAD have them, so that an object has one time.
        modified = datetime.fromisoformat(fields[f"{space}LastModified"])
        etag = fields[f"{space}ETag"].strip('"')
        objects.append(Object(key, size, etag, int(modified.timestamp()) * 10**6))
    more = root.findtext(f"{space}IsTruncated") == "true"
    token = root.findtext(f"{space}NextContinuationToken") or ""
    if more and not token:
        raise ValueError("it is cut short, without a token to go on")
    return objects, token if more else ""
