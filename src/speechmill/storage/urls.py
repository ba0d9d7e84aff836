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
_NO_BUCKET = re.compile(r"[@:?=&#]")
_QUERY = re.compile(r"\?[^/]*=")  # a key may have a question mark, but ?name=value is no key's name
# A relative path that begins as s3:x, user:password@host, or KEY/SECRET:x@host does.
_LIKE_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|(?![./~])[^@]*:[^@]*@")


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

    A URL that is written wrongly may hold keys anywhere: errors show its scheme alone.

    Raises:
        JobError: the scheme is unknown, the bucket is missing, there are secrets in it, or it is
            neither a URL nor a path.
    """
    match = _SCHEME.match(url)
    if match is None:
        return Location("file", "", _plain_path(url))
    scheme, rest = match[1].lower(), url[match.end() :]
    if scheme == "file":
        return Location("file", "", _file_path(rest))
    bucket, _, prefix = rest.partition("/")
    if scheme not in SCHEMES:
        raise JobError(
            f"{scheme[:16]}:// is no store that Speechmill can open: use a folder, "
            + ", ".join(f"{s}://" for s in SCHEMES)
        )
    if _NO_BUCKET.search(bucket) or _QUERY.search(prefix):
        raise JobError(
            f"the {scheme}:// URL holds more than a bucket and a path. Keys do not belong into a "
            "URL: put them into a profile (aws configure --profile NAME) and pass --profile NAME"
        )
    if not bucket:
        raise JobError(f"the {scheme}:// URL names no bucket: write {scheme}://bucket/path")
    return Location(scheme, bucket, prefix.strip("/"))


def _plain_path(path: str) -> str:
    if not path or "\0" in path:
        raise JobError(
            "a path is empty, or holds a NUL character: write a folder, or s3://bucket/path"
        )
    if _LIKE_A_URL.match(path):
        raise JobError(
            "a path looks like a URL whose scheme is not followed by //, and may hold a password, "
            "so it is not shown: write s3://bucket/path, or ./NAME for a folder with a colon"
        )
    return _absolute(os.path.expanduser(path))  # noqa: PTH111 pathlib keeps ".."


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)  # noqa: PTH100 pathlib keeps ".."
    except OSError as error:
        raise JobError(
            f"the working directory cannot be found ({error.strerror}), below which a path lies: "
            "change to another one, or give a whole path"
        ) from None


def _file_path(rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise JobError("a file:// URL must look like file:///absolute/path")
    decoded = os.fsdecode(unquote_to_bytes(("/" + path).encode("utf-8", "surrogateescape")))
    if "\0" in decoded:
        raise JobError("a file:// URL holds a NUL character, which no path has")
    return _absolute(decoded)


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
