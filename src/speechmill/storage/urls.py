"""URLs of stores: parse them, and find whether one lies inside another."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from speechmill.errors import JobError

__all__ = ["SCHEMES", "Location", "inside", "parse_url"]

SCHEMES = ("s3", "gs", "az", "file", "memory")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URL of a store.

    With the scheme "file" ``prefix`` is the absolute path, and ``bucket`` is empty. Else
    ``prefix`` is the path inside the bucket, without slashes around it.
    """

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """The normalised URL: a plain path for folders."""
        if self.scheme == "file":
            return self.prefix
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_url(url: str) -> Location:
    """Parse a URL or a plain path. Nothing in it is decoded, except after ``file://``.

    Raises:
        JobError: the scheme is unknown, the bucket is missing, or there are secrets in it.
    """
    match = _SCHEME.match(url)
    if match is None:
        if not url or "\0" in url:
            raise JobError(f"{url!r} is no path")
        return Location("file", "", os.path.abspath(os.path.expanduser(url)))  # noqa: PTH100, PTH111 pathlib keeps ".."
    scheme, rest = match[1].lower(), url[match.end() :]
    if scheme == "file":
        return Location("file", "", _file_path(rest))
    bucket, _, prefix = rest.partition("/")
    if scheme not in SCHEMES:
        raise JobError(
            f"{scheme}:// is no store that Speechmill can open: use a folder, "
            + ", ".join(f"{s}://" for s in SCHEMES)
        )
    if "@" in bucket or ":" in bucket:
        raise JobError(
            f"the {scheme}:// URL holds more than a bucket and a path. Keys do not belong into a "
            "URL: put them into a profile (aws configure --profile NAME) and pass --profile NAME"
        )
    if not bucket:
        raise JobError(f"{url!r} names no bucket: it must look like {scheme}://bucket/path")
    return Location(scheme, bucket, prefix.strip("/"))


def _file_path(rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise JobError(f"file://{rest} must look like file:///absolute/path")
    decoded = os.fsdecode(unquote_to_bytes(("/" + path).encode("utf-8", "surrogateescape")))
    if "\0" in decoded:
        raise JobError(f"file://{rest} is no path")
    return os.path.abspath(decoded)  # noqa: PTH100 pathlib keeps ".."


def inside(outer: str, inner: str) -> str | None:
    """Return where ``inner`` lies in ``outer``, as a prefix of its keys; "" if they are equal.

    None if it lies elsewhere. Folders are compared with symbolic links resolved.
    """
    a, b = parse_url(outer), parse_url(inner)
    if (a.scheme, a.bucket) != (b.scheme, b.bucket):
        return None
    below = _below(a.prefix, b.prefix)
    if below is None and a.scheme == "file":
        below = _below(os.path.realpath(a.prefix), os.path.realpath(b.prefix))
    return below


def _below(outer: str, inner: str) -> str | None:
    if inner == outer:
        return ""
    start = f"{outer.rstrip('/')}/" if outer else ""
    return inner.removeprefix(start).strip("/") if inner.startswith(start) else None
