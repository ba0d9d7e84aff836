"""Counts of a worker, its observer, and its report."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from speechmill.pipeline.report import Tally
from speechmill.records import ShardReport

__all__ = ["Observer", "WorkReport", "WorkTally"]


@dataclass
class WorkTally:
    """Counts of a worker. ``recordings`` counts what ``process_shard`` did; ``verdicts`` the
    outcomes of requests (``batch.Verdict``). ``lag``: messages that wait, where it is known."""

    done: Tally = field(default_factory=Tally)
    verdicts: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    dead_letters: int = 0
    batches: int = 0
    batch_s: float = 0.0
    batch_size: int = 0
    in_hand: int = 0
    lag: int | None = None
    commit_s: float = 0.0
    conflicts: int = 0
    written_bytes: int = 0

    def add(self, report: ShardReport, seconds: float, next_size: int) -> None:
        """Count a batch that took ``seconds``; the next one is of ``next_size`` recordings."""
        self.batches += 1
        self.batch_s += seconds
        self.batch_size = next_size
        self.commit_s += report.commit_s
        self.conflicts += report.conflicts
        self.written_bytes += report.written_bytes
        for done in report.done:
            self.done.add(done)


class Observer:
    """Observer of a worker. Called from one thread."""

    def ready(self, queue: str, sink: str, metrics: str) -> None:
        """The worker begins to take messages. ``metrics`` is where these are served, or ""."""

    def said(self, text: str) -> None:
        """A message for people."""

    def progress(self, tally: WorkTally) -> None:
        """The counts so far. Called often, also when nothing is new."""

    def batch(self, count: int, seconds: float) -> None:
        """A batch of ``count`` recordings is done."""


@dataclass(frozen=True, slots=True)
class WorkReport:
    """What one worker did. Durations in seconds.

    ``there`` were done before; ``left_out`` were not selected; ``dropped`` rows were of removed
    objects. ``dead_letters`` count messages.
    """

    run_id: str
    queue: str
    sink: str
    recipe: str
    messages: int
    recordings: int
    rows: int
    failed: int
    there: int
    left_out: int
    dropped: int
    dead_letters: int
    errors: dict[str, int]
    batches: int
    audio_s: float
    wall_s: float
    stages_s: dict[str, float]
    commit_s: float
    conflicts: int
    written_bytes: int
    stopped: bool

    @property
    def complete(self) -> bool:
        """Whether every requested recording has its row."""
        return not (self.failed or self.dead_letters)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)
