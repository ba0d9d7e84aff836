"""A broker in this process's memory, for tests and dry runs. Its messages end with the process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from speechmill.errors import JobError
from speechmill.queues.base import DEAD_LETTERS, BrokerOptions, Delivery, Message, QueueUrl

__all__ = ["MemoryBroker"]

POLL_S = 0.005  # between looks at an empty queue


@dataclass(slots=True, eq=False)
class _QueuedMessage:
    """A message, its number in the queue, and how often it was returned."""

    message: Message
    number: int
    redeliveries: int = 0


@dataclass(slots=True)
class _Queue:
    """Waiting messages, in order; the number published so far; the number that consumers hold."""

    waiting: deque[_QueuedMessage] = field(default_factory=deque)
    published: int = 0
    held: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


_queues: Final[dict[str, _Queue]] = {}
_queues_lock: Final = threading.Lock()


class MemoryBroker:
    """``memory://NAME/QUEUE``, the same for all of this process. It takes no options."""

    def __init__(self, url: QueueUrl, options: BrokerOptions) -> None:
        if options:
            raise JobError(f"broker_option: {min(options)!r}: memory:// has no options")
        self._url, self.url = url, url.url
        with _queues_lock:
            self._queue = _queues.setdefault(url.url, _Queue())

    def prepare(self, partitions: int = 12) -> None:
        """See ``Broker``."""

    def publish(self, messages: Sequence[Message]) -> None:
        """See ``Broker``."""
        with self._queue.lock:
            for message in messages:
                self._queue.published += 1
                self._queue.waiting.append(_QueuedMessage(message, self._queue.published))

    def consume(self, group: str, *, whole: bool = False) -> MemoryConsumer:  # noqa: ARG002
        """See ``Broker``. All groups are one."""
        return MemoryConsumer(self._url.queue, self._queue)

    def dead_letters(self) -> MemoryBroker:
        """See ``Broker``."""
        return MemoryBroker(self._url.named(f"{self._url.queue}{DEAD_LETTERS}"), {})

    def close(self) -> None:
        """See ``Broker``."""


class MemoryConsumer:
    """Takes messages in order."""

    shares = True

    def __init__(self, name: str, queue: _Queue) -> None:
        self._name, self._queue = name, queue
        self._held: dict[int, _QueuedMessage] = {}

    def receive(self, most: int, timeout_s: float) -> Sequence[Delivery]:
        """See ``Consumer``."""
        deadline = time.monotonic() + timeout_s
        while not (taken := self._take(most)) and time.monotonic() < deadline:
            time.sleep(min(POLL_S, timeout_s))
        return taken

    def _take(self, most: int) -> list[Delivery]:
        taken: list[Delivery] = []
        with self._queue.lock:
            while self._queue.waiting and len(taken) < most:
                kept = self._queue.waiting.popleft()
                self._held[kept.number] = kept
                self._queue.held += 1
                origin = f"{self._name}#{kept.number}"
                taken.append(Delivery(kept.message, origin, kept.redeliveries, kept.number))
        return taken

    def holds(self, delivery: Delivery) -> bool:
        """See ``Consumer``."""
        return delivery.tag in self._held

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``."""
        with self._queue.lock:
            for delivery in deliveries:
                if isinstance(delivery.tag, int) and delivery.tag in self._held:
                    del self._held[delivery.tag]
                    self._queue.held -= 1

    def lag(self) -> int | None:
        """See ``Consumer``."""
        return len(self._queue.waiting) + len(self._held)

    def is_empty(self) -> bool:
        """See ``Consumer``."""
        return not (self._queue.waiting or self._queue.held)

    def close(self) -> None:
        """See ``Consumer``: what is held waits again, ahead of the rest."""
        with self._queue.lock:
            for kept in sorted(self._held.values(), key=lambda kept: kept.number, reverse=True):
                kept.redeliveries += 1
                self._queue.waiting.appendleft(kept)
                self._queue.held -= 1
            self._held.clear()
