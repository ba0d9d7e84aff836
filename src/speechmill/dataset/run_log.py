"""A run's logs, in the sink: ``_speechmill/runs/<run id>/``.

Objects cannot be appended to, so a log is a series of pieces: the newest is rewritten as it grows,
every ten seconds at most, until it is large; then the next one begins. A run that is killed leaves
its log up to the last write.
"""

from __future__ import annotations

import datetime
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from speechmill.dataset.layout import RUNS
from speechmill.errors import StorageError
from speechmill.records import RecordingDone
from speechmill.storage import Store

__all__ = ["RunLog", "new_run_id"]

FLUSH_EVERY_S = 10.0  # what a kill may cost of the log
PIECE_BYTES = 512 * 1024  # rewritten each time it grows, so not more
LAST_FLUSH_S = 3.0  # that a run which fails waits for its log to be written


def new_run_id() -> str:
    """Make an id for a run that sorts by time: 20260131T235959Z-1f3a."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class _PieceLog:
    """One log in pieces: ``name.log``, ``name-0002.log`` and so on."""

    def __init__(self, store: Store, folder: str, name: str) -> None:
        self._store, self._folder, self._name = store, folder, name
        self._piece, self._dirty = 1, False
        self._lines: list[bytes] = []
        self._bytes = 0

    def write(self, line: bytes) -> None:
        self._lines.append(line + b"\n")
        self._bytes += len(line) + 1
        self._dirty = True

    @property
    def full(self) -> bool:
        return self._bytes >= PIECE_BYTES

    def flush(self) -> None:
        if not self._dirty:
            return
        suffix = "" if self._piece == 1 else f"-{self._piece:04d}"
        self._store.put(f"{self._folder}/{self._name}{suffix}.log", b"".join(self._lines))
        self._dirty = False
        if self.full:
            self._lines, self._bytes = [], 0
            self._piece += 1


class RunLog:
    """``application.log`` (what happened), ``timing.log`` (each recording's seconds by stage) and
    ``report.json`` of one run; JSON lines. Used from one thread.

    A log that cannot be written never stops a build: the lines wait for the next time.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.folder = f"{RUNS}/{run_id}"
        self._store = store
        self._application = _PieceLog(store, self.folder, "application")
        self._timing = _PieceLog(store, self.folder, "timing")
        self._flushed_at = time.monotonic()
        self._failed = False
        self._host = socket.gethostname()

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Add a line to ``application.log``."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "event": event, "host": self._host, **fields}
        self._application.write(_json(line))

    def timing(self, **fields: Any) -> None:
        """Add a line to ``timing.log``."""
        self._timing.write(_json(fields))

    def recording(self, done: RecordingDone) -> None:
        """Add a recording's outcome: its seconds by stage, and why it failed."""
        self.timing(
            file_name=done.file_name,
            duration_s=round(done.duration_s, 3),
            fetch_s=round(done.fetch_s, 6),
            decode_s=round(done.decode_s, 6),
            transcribe_s=round(done.transcribe_s, 6),
            tokenize_s=round(done.tokenize_s, 6),
        )
        if done.failure:
            self.event(
                "recording failed",
                "warning",
                file_name=done.file_name,
                stage=done.failure.stage,
                error=done.failure.error,
                message=done.failure.message,
            )

    def flush(self, *, now: bool = False) -> None:
        """Write new lines to the sink, if ten seconds have passed, a piece is full, or ``now``."""
        much = not self._failed and (self._application.full or self._timing.full)
        if not now and not much and time.monotonic() - self._flushed_at < FLUSH_EVERY_S:
            return
        self._flushed_at = time.monotonic()
        self._failed = True
        with suppress(StorageError):  # if the store stays down, the commits will fail
            self._application.flush()
            self._timing.flush()
            self._failed = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Log the error that a run fails with, if it does, and let it pass."""
        try:
            yield
        except BaseException as error:
            self.event("broken off", "error", error=type(error).__name__, message=str(error))
            # Not for long: a store that is down was waited for already.
            writing = threading.Thread(target=self.flush, kwargs={"now": True}, daemon=True)
            writing.start()
            writing.join(LAST_FLUSH_S)
            raise

    def report(self, report: dict[str, Any]) -> None:
        """Write ``report.json``."""
        self._store.put(f"{self.folder}/report.json", _json(report, indent=2))


def _json(told: dict[str, Any], indent: int | None = None) -> bytes:
    """Readable JSON of anything: lone surrogates, which messages may hold, are escaped."""
    text = json.dumps(told, indent=indent, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace")
