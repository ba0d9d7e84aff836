"""The dead letters that a worker has to send."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence

from speechmill.errors import BrokerError
from speechmill.queues.base import Broker
from speechmill.queues.dead_letters import MAX_LETTER_BYTES
from speechmill.queues.in_hand import HeldMessage, PendingDeadLetter

__all__ = ["LetterBox"]

LEAST_BYTES = 1024
_SIZE = re.compile(r"\bsize\b|too (large|big|long)", re.IGNORECASE)  # as brokers put it


class LetterBox:
    """Dead letters that wait to be sent to ``broker``'s queue. They are cut to less as long as it
    says that they are too large."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._due: list[PendingDeadLetter] = []
        self._not_before = 0.0
        self._max_bytes = MAX_LETTER_BYTES

    def __len__(self) -> int:
        return len(self._due)

    def add(self, letter: PendingDeadLetter) -> None:
        """Note a letter to send."""
        self._due.append(letter)

    def forget(self, lost: Collection[HeldMessage]) -> None:
        """Drop letters of messages that are no longer ours."""
        for letter in self._due:
            letter.held = [held for held in letter.held if held not in lost]
        self._due = [letter for letter in self._due if letter.held]

    def send(self, pause_s: float) -> Sequence[PendingDeadLetter]:
        """Send all letters, and return them; none within ``pause_s`` after the broker refused.

        Raises:
            BrokerError: it has not confirmed them.
        """
        if not self._due or time.monotonic() < self._not_before:
            return ()
        try:
            self._broker.publish([letter.message(self._max_bytes) for letter in self._due])
        except BrokerError as error:
            if _SIZE.search(str(error)):
                self._max_bytes = max(LEAST_BYTES, self._max_bytes // 4)
            self._not_before = time.monotonic() + pause_s
            raise
        self._max_bytes = MAX_LETTER_BYTES
        sent, self._due = self._due, []
        return sent

    def close(self) -> None:
        """Close the broker's queue."""
        self._broker.close()
