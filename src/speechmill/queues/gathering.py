"""The size of batches, learned from the time that they take, and their choice of recordings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

__all__ = ["BatchSize", "max_suspects", "whole_groups"]

TARGET_S = 20.0  # per batch: what a kill may cost, and how long a stop may wait
FIRST_SIZE = 4  # recordings: so few that a worker which is soon killed still completes some
SUSPECT_REDELIVERIES = 4  # from this many on, a message may be what workers crash on

T = TypeVar("T")


class BatchSize:
    """Doubles from ``FIRST_SIZE``, up to ``most``, while batches take less than ``TARGET_S``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = min(FIRST_SIZE, most)

    def learn(self, count: int, seconds: float) -> None:
        """Adapt to a batch of ``count`` recordings that took ``seconds``."""
        if count < min(FIRST_SIZE, self.size):  # too few to tell
            return
        wanted = int(TARGET_S * count / max(seconds, 1e-3))
        self.size = min(self._most, max(min(FIRST_SIZE, self._most), min(2 * self.size, wanted)))


def max_suspects(redeliveries: int) -> int:
    """Limit how many messages of so many redeliveries are processed together.

    Those that crash workers are separated from the others by halves: 2, and then 1. It goes slowly,
    because workers also die for other reasons, and brokers also count messages that they only held.
    """
    return max(1, FIRST_SIZE >> (1 + max(0, redeliveries - SUSPECT_REDELIVERIES) // 2))


def whole_groups(items: Sequence[T], group_of: Callable[[T], Hashable], most: int) -> list[T]:
    """Choose up to ``most`` items by whole groups, in the order of their first items, so that a
    batch rewrites few parts."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    chosen: list[T] = []
    for some in groups.values():
        chosen += some[: most - len(chosen)]
        if len(chosen) == most:
            break
    return chosen
