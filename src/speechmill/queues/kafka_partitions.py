"""What is settled of a Kafka partition, and how often work on it was begun."""

from __future__ import annotations

import json
from collections import OrderedDict

__all__ = ["Partition", "Watermark", "begun_before"]


class Watermark:
    """The offsets of one partition that were taken, and up to which all are settled.

    They are taken in rising order, and settled in any.
    """

    def __init__(self, base: int | None = None) -> None:
        self._out: OrderedDict[int, None] = OrderedDict()
        self._next = base

    def take(self, offset: int) -> None:
        """It is out from now on."""
        self._out[offset] = None
        self._next = offset + 1

    def settle(self, offset: int) -> None:
        """It is done with."""
        self._out.pop(offset, None)

    @property
    def low(self) -> int | None:
        """All before this offset are settled; None where nothing is known."""
        return next(iter(self._out), self._next)

    @property
    def end(self) -> int | None:
        """The offset behind the last one that was taken."""
        return self._next

    @property
    def num_out(self) -> int:
        """How many are out."""
        return len(self._out)


class Partition:
    """One partition while it is ours. ``begun`` and ``begun_end`` are what was kept of it: how
    often work was begun at ``base``, and up to where."""

    def __init__(self, base: int | None, begun: int, begun_end: int) -> None:
        self.base = base
        self.marks = Watermark(base)
        self.begun, self.begun_end = begun, begun_end
        self.told: tuple[int | None, str] = (base, "")

    def deaths(self, offset: int) -> int:
        """How often work was begun on this offset before, and not ended."""
        return self.begun if offset < self.begun_end else 0

    def metadata(self) -> str:
        """What is kept with the offset: this life counts, until it makes headway."""
        stuck = self.marks.low == self.base or self.base is None
        begun = self.begun + 1 if stuck else 1
        return json.dumps({"begun": begun, "end": self.marks.end}) if self.marks.num_out else ""


def begun_before(metadata: str | None) -> tuple[int, int]:
    """How often, and up to where, work was begun at a committed offset."""
    try:
        kept = json.loads(metadata or "{}")
        return int(kept.get("begun", 0)), int(kept.get("end") or 0)
    except (ValueError, TypeError, AttributeError):  # somebody else's
        return 0, 0
