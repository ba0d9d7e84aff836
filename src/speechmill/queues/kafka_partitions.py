"""The settled offsets of a Kafka partition, and how often work on it was begun."""

from __future__ import annotations

import json
from collections import OrderedDict

__all__ = ["Partition", "Watermark", "begun_before"]


class Watermark:
    """The offsets in hand of one partition, taken in ascending order and settled in any, and the
    offset up to which all are settled."""

    def __init__(self, base: int | None = None) -> None:
        self._out: OrderedDict[int, None] = OrderedDict()
        self._next = base

    def take(self, offset: int) -> None:
        """Note that a message is in hand."""
        self._out[offset] = None
        self._next = offset + 1

    def settle(self, offset: int) -> None:
        """Note that a message is settled."""
        self._out.pop(offset, None)

    @property
    def low(self) -> int | None:
        """All before this offset are settled; None where nothing is known."""
        return next(iter(self._out), self._next)

    @property
    def end(self) -> int | None:
        """The offset after the last one taken."""
        return self._next

    @property
    def num_out(self) -> int:
        """The number of messages in hand."""
        return len(self._out)


class Partition:
    """One partition while it is assigned to us. ``begun`` and ``begun_end`` were stored by earlier
    consumers: how often work was begun at ``base``, and up to which offset."""

    def __init__(self, base: int | None, begun: int, begun_end: int) -> None:
        self.base = base
        self.marks = Watermark(base)
        self.begun, self.begun_end = begun, begun_end
        self.told: tuple[int | None, str] = (base, "")

    def redeliveries(self, offset: int) -> int:
        """Count how often work on this offset was begun before, and not ended."""
        return self.begun if offset < self.begun_end else 0

    def metadata(self) -> str:
        """Make the committed offset's metadata: this consumer counts until the offset moves."""
        stuck = self.marks.low == self.base or self.base is None
        begun = self.begun + 1 if stuck else 1
        return json.dumps({"begun": begun, "end": self.marks.end}) if self.marks.num_out else ""


def begun_before(metadata: str | None) -> tuple[int, int]:
    """Parse the metadata: how often, and up to which offset, work was begun."""
    try:
        kept = json.loads(metadata or "{}")
        return int(kept.get("begun", 0)), int(kept.get("end") or 0)
    except (ValueError, TypeError, AttributeError):  # somebody else's
        return 0, 0
