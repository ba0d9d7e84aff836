"""How long tests disturb what they test, and from which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Chaos:
    """Short, and each time the same, in ``make test``; long, from the seed that is printed, in
    ``make chaos``."""

    seed: int = 7
    is_long: bool = False

    def choose(self, short: T, long: T) -> T:
        """The one or the other: numbers of messages, kills and the like."""
        return long if self.is_long else short
