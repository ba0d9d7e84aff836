"""Measures memory in tests: what a process holds for itself, without maps of files."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["AnonymousPeak", "anonymous_bytes"]

EVERY_S = 0.002


def anonymous_bytes() -> int:
    """Anonymous memory of this process, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


class AnonymousPeak:
    """How far anonymous memory grows above where it was. Use it as a context manager."""

    def __init__(self) -> None:
        self.grown_bytes = 0
        self._before = 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = anonymous_bytes()
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        self.grown_bytes = max(self.grown_bytes, anonymous_bytes() - self._before)
