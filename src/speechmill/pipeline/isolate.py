"""Whose fault it was: a batch that fails is tried one by one, a broken engine is given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

__all__ = ["Breaker", "all_or_each"]

MODEL_ERRORS: Final = 16
"""So many errors of the engine in a row are not the recordings' fault …"""
FIRST_MODEL_ERRORS: Final = 3
"""… and fewer, before it has worked at all."""

T = TypeVar("T")


def all_or_each(
    items: Sequence[T],
    call: Callable[[Sequence[T]], None],
    failed: Callable[[T, Exception], None],
) -> None:
    """Call with all items at once; if that fails, with each alone, so that only the guilty fail.

    Args:
        items: what is to be done; nothing is called where there are none.
        call: does some of them.
        failed: is told of an item with which ``call`` failed alone. It may raise.
    """
    if not items:
        return
    try:
        call(items)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told of the item that raises it
        if len(items) == 1:
            failed(items[0], error)
            return
        for item in items:
            all_or_each([item], call, failed)


class Breaker:
    """Counts errors of an engine, so that a broken one ends a job instead of failing every row.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row = MODEL_ERRORS - FIRST_MODEL_ERRORS

    def worked(self) -> None:
        """The engine can run the model: its errors count from none again."""
        with self._lock:
            self._in_a_row = 0

    def failed(self) -> bool:
        """Count an error of the engine. Whether it has failed so often that the job must end."""
        with self._lock:
            self._in_a_row += 1
            return self._in_a_row >= MODEL_ERRORS
