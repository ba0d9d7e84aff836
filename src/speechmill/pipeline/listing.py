"""The recordings that a job chooses of what its source lists, and the folders they are in."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from speechmill import audio
from speechmill.dataset.layout import (
    DATA,
    FAILURES,
    OWN_PREFIXES,
    ROOT_FOLDER,
    folder_rule,
    partition_rule,
)
from speechmill.errors import (
    AccessDeniedError,
    ArchivedError,
    ConflictError,
    JobError,
    NotFoundError,
)
from speechmill.job import Job, Selection
from speechmill.pipeline.selection import extension_of, selection
from speechmill.records import Recording, printable
from speechmill.storage import Store, inside

__all__ = [
    "HEAD_BYTES",
    "Folders",
    "Listing",
    "below_sink",
    "name_digest",
    "read_head",
    "told_by_content",
    "unlike_recording",
    "why_left_out",
]

HEAD_BYTES: Final = 64
"""Bytes of a file that tell what it is, where its name does not."""

NO_AUDIO: Final = "no extension, no audio"
APPLE_DOUBLE: Final = "AppleDouble"
"""Why such a file is left out, as a plan counts it."""

RECENT: Final = 10_000
"""Recordings after which a folder is taken to be listed to the end."""


def name_digest(file_name: str) -> bytes:
    """What ``Plan.names`` holds of a file name."""
    return hashlib.blake2b(file_name.encode(), digest_size=16).digest()


class Listing:
    """The listed objects that a job's selection takes, as they come.

    ``listed`` counts the objects so far, ``left_out`` those that were not chosen, by reason. Where
    the job prunes, ``names`` are the digests of all names, and ``unseen`` the folders that could
    not be looked into.
    """

    def __init__(self, job: Job, source: Store, sink: Store) -> None:
        self._job, self._source = job, source
        self._sink_prefix = inside(source.url, sink.url)
        self.listed = 0
        self.left_out: Counter[str] = Counter()
        self.names: set[bytes] = set()
        self.unseen: list[str] = []

    def __iter__(self) -> Iterator[Recording]:
        reason_of = selection(self._job)
        for listed in self._source.list():
            if self._sink_prefix is not None and below_sink(listed.key, self._sink_prefix):
                continue
            self.listed += 1
            name = printable(listed.key)
            if self._job.prune:
                self.names.add(name_digest(name))
                if not listed.etag:
                    self.unseen.append(f"{name}/")
            # What could not even be looked at (no etag) is taken: its failure says why.
            if listed.etag and (reason := reason_of(name)) is not None:
                self.left_out[reason] += 1
            else:
                yield Recording(listed.key, listed.size, listed.etag, listed.modified_us)


class Folders:
    """The folder of each listed recording, or what stands for several folders in the partitions.

    ``recent`` are those of the last recordings. ``same_name`` shows folders whose recordings lie in
    different directories, and ``unmatched`` counts recordings that a regular expression of the job
    does not match.
    """

    def __init__(self, job: Job) -> None:
        self._rule = job.folder
        self._folder_of = folder_rule(job.folder)
        self._partition_of = partition_rule(job.partition_by)
        self._by_directory = job.folder in ("parent", "first", "path")
        self._last: tuple[str, str] | None = None  # directory and folder of the one before
        self._directories: dict[str, str] = {}
        self.recent: deque[str] = deque(maxlen=RECENT)
        self.same_name: dict[str, tuple[str, str]] = {}
        self.unmatched = 0

    def of(self, recording: Recording) -> str:
        """The folder of a recording."""
        key = recording.key
        directory = key[: key.rfind("/") + 1]
        if self._last is None or self._last[0] != directory or not self._by_directory:
            self._last = directory, self._find(recording.file_name)
        folder = self._last[1]  # which neighbours mostly share
        self.recent.append(folder)
        return folder

    def _find(self, name: str) -> str:
        folder_name = self._folder_of(name)
        directory = posixpath.dirname(name)
        seen = self._directories.setdefault(folder_name, directory)
        if folder_name == ROOT_FOLDER and not self._by_directory:
            self.unmatched += 1
        if seen != directory and self._rule == "parent":
            self.same_name.setdefault(folder_name, (seen, directory))
        return self._partition_of(folder_name)


def told_by_content(recording: Recording, chosen: Selection) -> bool:
    """Whether a file that was chosen by name is to be looked into: it has no extension, or is
    called as AppleDouble files are. What could not even be looked at (no etag) is not."""
    if not recording.etag:
        return False
    if _is_called_apple_double(recording.key):
        return True
    return not extension_of(recording.key) and not chosen.extension


def unlike_recording(recording: Recording, head: bytes) -> str | None:
    """Why a file that is ``told_by_content`` is no recording, by its first bytes; None where it is
    one. A recording that is only called as AppleDouble files are is one as any other."""
    if _is_called_apple_double(recording.key) and audio.is_apple_double(head):
        return APPLE_DOUBLE
    if extension_of(recording.key) or audio.looks_like_audio(head):
        return None
    return NO_AUDIO


def read_head(source: Store, recording: Recording) -> bytes:
    """Read what ``unlike_recording`` tells by.

    Raises:
        StorageError: it cannot be read, or has changed.
    """
    return source.read(recording.key, 0, min(HEAD_BYTES, recording.size), etag=recording.etag)


def why_left_out(source: Store, recording: Recording) -> str | None:
    """Look into a file that is ``told_by_content``: why it is no recording, or None where it is
    one, or cannot be read, so that it has to fail.

    Raises:
        UnavailableError: the store stays down.
    """
    try:
        return unlike_recording(recording, read_head(source, recording))
    except (NotFoundError, ConflictError):  # gone or changed meanwhile: the next build's
        return None if extension_of(recording.key) else NO_AUDIO
    except (AccessDeniedError, ArchivedError):
        return None


def _is_called_apple_double(key: str) -> bool:
    return key.startswith("._", key.rfind("/") + 1)


def below_sink(key: str, sink_prefix: str) -> bool:
    """Whether an object of the source is one of the sink, which lies in it at this prefix.

    Raises:
        JobError: the source's own folders are called as those of a sink.
    """
    if sink_prefix:
        return key.startswith(f"{sink_prefix}/")
    top, _, below = key.partition("/")
    if top in (DATA, FAILURES) and not below.startswith("folder="):
        raise JobError(
            f"the source has a folder {top!r} of its own ({printable(key)}), which is where the "
            "dataset would go; choose another sink"
        )
    return top in OWN_PREFIXES
