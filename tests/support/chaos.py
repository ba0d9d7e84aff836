"""How long tests disturb what they test, from which seed, and what they have counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

T = TypeVar("T")

LONG_S = 720.0
"""Seconds after which the long form of a test begins nothing more."""


@dataclass(frozen=True)
class Chaos:
    """Short, and each time the same, in ``make test``; long, from the seed that is printed, in
    ``make chaos``, which shows ``counts`` at its end."""

    seed: int = 7
    is_long: bool = False
    long_s: float = LONG_S
    counts: dict[str, int] = field(default_factory=dict)

    def choose(self, short: T, long: T) -> T:
        """The one or the other: numbers of messages, kills and the like."""
        return long if self.is_long else short

    def draw(self, *what: object) -> Random:
        """Chance for one of many cases, so that it can be had again without those before it."""
        return Random(f"{self.seed} {what}")

    def count(self, what: str, number: int = 1) -> None:
        """Count what was done, or happened."""
        self.counts[what] = self.counts.get(what, 0) + number

    def rounds(self, short: int, long: int) -> Iterator[int]:
        """So many numbers, from 0; of the long form those for which there is time."""
        began = time.monotonic()
        for number in range(self.choose(short, long)):
            if self.is_long and time.monotonic() - began > self.long_s:
                return
            yield number
