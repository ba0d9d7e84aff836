"""Which files are taken as recordings, and how long they may be, by name and size alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from speechmill import audio
from speechmill.job import Selection
from speechmill.records import Recording

__all__ = ["estimate_s", "extension_of", "selection"]

# Typical sizes of speech, bytes a second, to guess how much audio a folder holds. Only the number
# of parts hangs on it.
BYTES_PER_SECOND = {
    "wav": 64_000, "aif": 64_000, "aiff": 64_000, "aifc": 64_000, "au": 32_000, "caf": 64_000,
    "flac": 40_000, "mp3": 16_000, "m4a": 16_000, "mp4": 16_000, "aac": 16_000, "wma": 16_000,
    "ogg": 10_000, "oga": 10_000, "opus": 5_000, "webm": 6_000, "mka": 10_000,
}  # fmt: skip
OTHER_BYTES_PER_SECOND = 32_000
SHORTEST_S = 1.0


def extension_of(key: str) -> str:
    """The key's extension, lower case, without the dot; "" where it has none."""
    # posixpath.splitext() takes twice as long, and each recording is asked four times.
    stem, _, extension = key.rpartition(".")
    if stem.endswith("."):
        stem = stem.rstrip(".")
    return "" if not stem or stem.endswith("/") or "/" in extension else extension.lower()


def estimate_s(recording: Recording) -> float:
    """A guess of the recording's duration, in seconds, from its size and extension."""
    rate = BYTES_PER_SECOND.get(extension_of(recording.key), OTHER_BYTES_PER_SECOND)
    return max(SHORTEST_S, recording.size / rate)


def selection(wanted: Selection) -> Callable[[str], str | None]:
    """Make the function that says why a file name is left out; None where it is taken."""
    extensions = set(wanted.extension or audio.EXTENSIONS)
    include = [_glob(g) for g in wanted.include]
    exclude = [_glob(g) for g in wanted.exclude]

    def reason(name: str) -> str | None:
        extension = extension_of(name)
        if extension not in extensions and (extension or wanted.extension):
            return f".{extension}" if extension else "no extension"
        if include and not any(g.match(name) for g in include):
            return "not included"
        if any(g.match(name) for g in exclude):
            return "excluded"
        return None

    return reason


def _glob(pattern: str) -> re.Pattern[str]:
    """``*`` also matches "/"; a pattern without wildcards is a file, or a folder with all in it."""
    if not any(c in pattern for c in "*?["):
        return re.compile(re.escape(pattern.strip("/")) + "(/.*)?$", re.DOTALL)
    return re.compile(fnmatch.translate(pattern))
