"""A bounded look-ahead: what comes next is begun while the caller is busy with what came before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    items: Iterable[T],
    begin: Callable[[T], Future[R]],
    *,
    most: int | Callable[[], int],
    cost: Callable[[T], float] = lambda _: 0.0,
    most_cost: float = math.inf,
) -> Generator[tuple[T, R], None, None]:
    """Yield each item with what came of it, in order, while up to ``most`` are on their way.

    An item is begun only when there is room for it, and so ``items`` may be a generator of any
    length. What has not begun is cancelled when the caller stops, or one of them fails.

    Args:
        items: what is to be done.
        begin: starts the work on an item, in some pool.
        most: how many may be on their way, at least 1; a function where that changes.
        cost: what an item takes of ``most_cost``, such as seconds of audio.
        most_cost: the most of it that may be on its way. A single item may take more.

    Raises:
        Exception: whatever the work on an item raised, when it is that item's turn.
    """
    waiting = iter(items)
    flying: deque[tuple[T, float, Future[R]]] = deque()
    flying_cost = 0.0
    upcoming = next(waiting, None)
    try:
        while upcoming is not None or flying:
            while upcoming is not None:
                price = cost(upcoming)
                limit = most() if callable(most) else most
                if flying and (len(flying) >= limit or flying_cost + price > most_cost):
                    break
                flying.append((upcoming, price, begin(upcoming)))
                flying_cost += price
                upcoming = next(waiting, None)
            item, price, future = flying.popleft()
            flying_cost -= price
            yield item, future.result()
    finally:
        for _, _, future in flying:
            future.cancel()
