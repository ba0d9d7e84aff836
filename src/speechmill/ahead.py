"""Items in order: looked ahead, so that work on the next ones begins early; or put together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["ahead", "together"]

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
    """Yield each item with its result, in order, while up to ``most`` items are in flight.

    An item is begun only when there is room for it, so ``items`` may be a generator of any length.
    When the caller stops or an item fails, the items that have not started are cancelled.

    Args:
        items: the items to work on.
        begin: submits the work on an item to some pool.
        most: how many items may be in flight, at least 1; a function where that changes.
        cost: the share of an item in ``most_cost``, such as seconds of audio.
        most_cost: the highest total cost in flight. A single item may exceed it.

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


def together(
    items: Iterable[T], cost: Callable[[T], float], most_cost: float, most: float = math.inf
) -> Iterator[list[T]]:
    """Groups of up to ``most`` items, in order, that cost ``most_cost`` at most or are one item."""
    group: list[T] = []
    total = 0.0
    for item in items:
        price = cost(item)
        if group and (total + price > most_cost or len(group) == most):
            yield group
            group, total = [], 0.0
        group.append(item)
        total += price
    if group:
        yield group
