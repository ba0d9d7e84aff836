"""How many recordings a batch should have, and which: learned from what batches take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

__all__ = ["BatchSize", "by_group", "suspects"]

TARGET_S = 20.0  # of work in a batch: what a kill may cost, and what a stop may have to wait for
FIRST = 4  # recordings: a worker that does not live long makes headway all the same
SUSPECT = 4  # deaths, from which on a message is looked at more closely

T = TypeVar("T")


class BatchSize:
    """Doubles from ``FIRST``, up to ``most``, while batches take less than ``TARGET_S``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = min(FIRST, most)

    def learn(self, count: int, seconds: float) -> None:
        """A batch of ``count`` recordings took so long."""
        if count < min(FIRST, self.size):  # too few to tell
            return
        wanted = int(TARGET_S * count / max(seconds, 1e-3))
        self.size = min(self._most, max(min(FIRST, self._most), min(2 * self.size, wanted)))


def suspects(deaths: int) -> int:
    """How many messages, that were in hand at so many workers' deaths, may be in hand together.

    The innocent are told from the guilty by halves: 2, and then each for itself. Workers die for
    reasons of their own, too, and a broker also counts what they only held: so it goes slowly.
    """
    return max(1, FIRST >> (1 + max(0, deaths - SUSPECT) // 2))


def by_group(items: Sequence[T], group_of: Callable[[T], Hashable], most: int) -> list[T]:
    """Up to ``most`` of the items, whole groups together: that of the first one, of the first one
    that is left, and so on. So few parts are rewritten for many recordings."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    chosen: list[T] = []
    for some in groups.values():
        chosen += some[: most - len(chosen)]
        if len(chosen) == most:
            break
    return chosen
