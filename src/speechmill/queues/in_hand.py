"""The messages, recordings and batches that a worker has in hand."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from speechmill.queues.base import Delivery, Message
from speechmill.queues.batch import Outcome, Request
from speechmill.queues.dead_letters import dead_letter
from speechmill.queues.notices import Notice
from speechmill.records import ShardReport

__all__ = ["HeldMessage", "PendingDeadLetter", "PendingRecording", "RunningBatch", "supersedes"]


@dataclass(slots=True, eq=False)
class HeldMessage:
    """A message in hand, and the number of recordings that it still waits for."""

    delivery: Delivery
    waits_for: int = 0


@dataclass(slots=True, eq=False)
class PendingRecording:
    """A recording that messages in hand request."""

    request: Request
    held: list[HeldMessage]
    since: float
    attempts: int = 0
    not_before: float = 0.0
    apart: bool = False  # it is tried without others: it was in a batch that our own code broke off

    @property
    def redeliveries(self) -> int:
        """The most redeliveries of its messages."""
        return max((h.delivery.redeliveries for h in self.held), default=0)


@dataclass(slots=True)
class RunningBatch:
    """A batch in progress."""

    wanted: list[PendingRecording]
    started: float
    future: Future[tuple[Sequence[Outcome], ShardReport]]
    exclusive: bool  # of suspects: no other batch runs meanwhile


@dataclass(slots=True, eq=False)
class PendingDeadLetter:
    """A dead letter to send, and the messages that it settles."""

    reason: str
    held: list[HeldMessage]
    file_name: str = ""
    stage: str = ""
    error: str = ""
    attempts: int = 1

    def message(self, max_bytes: int) -> Message:
        """Make the dead letter of its first message, of at most so many bytes."""
        headers = {
            "reason": self.reason,
            "error": self.error,
            "stage": self.stage,
            "file_name": self.file_name,
            "attempts": str(self.attempts),
        }
        return dead_letter(self.held[0].delivery, headers, max_bytes)


def supersedes(new: Notice, old: Notice) -> bool:
    """Whether a message about an object supersedes an earlier one.

    The store is asked for the object of an event, so events supersede a version listed earlier; of
    two versions the later one counts.
    """
    if new.recording is None or old.recording is None:
        return new.recording is None and (new.kind == "removed" or old.kind == "created")
    return new.recording.modified_us > old.recording.modified_us
