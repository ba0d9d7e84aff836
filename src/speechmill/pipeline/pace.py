"""How much the model is given at a time, and what each call of it cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Pace"]

CALL_S: Final = 20.0
"""How long a call is to take: a stop waits for it, and the model sorts within it by length."""

MAX_PIECES: Final = 1024
"""What a call is given at most."""


class Cost:
    """What a call cost, once it is over."""

    seconds: float = 0.0


class Pace:
    """Learns from each call how many pieces the next one should be given. Thread-safe.

    Args:
        pieces: how many the first call is given.
    """

    def __init__(self, pieces: int) -> None:
        self.pieces = min(pieces, MAX_PIECES)
        self._lock = threading.Lock()
        self._calls = 0  # under way
        self._changed = time.perf_counter()
        self._shared_s = 0.0  # the wall time, of which each call under way has an equal share

    @contextmanager
    def call(self, pieces: int) -> Iterator[Cost]:
        """Time a call with so many pieces. The cost of calls at the same time is shared: all
        costs together are the time in which at least one was under way."""
        cost = Cost()
        begun, begun_at = self._step(+1), time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds = self._step(-1) - begun
        self._learn(pieces, time.perf_counter() - begun_at)

    def _step(self, calls: int) -> float:
        with self._lock:
            now = time.perf_counter()
            self._shared_s += (now - self._changed) / max(1, self._calls)
            self._changed = now
            self._calls += calls
            return self._shared_s

    def _learn(self, pieces: int, wall_s: float) -> None:
        with self._lock:
            if 2 * pieces < self.pieces:
                return  # a remainder: small groups cost more a piece
            wanted = int(pieces * CALL_S / max(wall_s, 1e-3))
            limits = self.pieces // 2, 2 * self.pieces
            self.pieces = min(max(1, limits[0], min(wanted, limits[1])), MAX_PIECES)
