"""What a build reports: counts, seconds and rates, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from speechmill.records import RecordingDone

__all__ = ["BuildReport", "Seconds", "Tally"]

STAGES = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")
BUCKETS_PER_DECADE = 200  # a quantile is off by 0.6% at most
SMALLEST_S = 1e-6


class Seconds:
    """Mean and quantiles of many durations (seconds), kept as a histogram of their logarithms."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.total += seconds
        self._buckets[round(BUCKETS_PER_DECADE * math.log10(max(seconds, SMALLEST_S)))] += 1

    @property
    def mean(self) -> float:
        """The mean; 0 where nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The duration that a share ``q`` of all does not exceed; 0 where nothing was counted."""
        rank, seen = q * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return float(10 ** (bucket / BUCKETS_PER_DECADE))
        return 0.0


@dataclass
class Tally:
    """What was done so far."""

    recordings: int = 0
    rows: int = 0
    failed: int = 0
    gone: int = 0
    num_bytes: int = 0
    audio_s: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    errors: Counter[str] = field(default_factory=Counter)
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, done: RecordingDone) -> None:
        """Count one recording."""
        self.recordings += 1
        self.rows += done.num_rows
        self.num_bytes += done.num_bytes
        self.gone += done.gone
        self.audio_s += done.duration_s
        for stage in STAGES:
            self.stages[stage] += getattr(done, stage)
        if done.failure:
            self.failed += 1
            self.errors[done.failure.error] += 1
        else:
            self.seconds.add(sum(getattr(done, stage) for stage in STAGES))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What one build did. Durations in seconds.

    ``recordings`` = rows' recordings + ``failed`` + ``gone`` (deleted from the source after they
    were listed). ``already_done`` and ``failed_before`` were left as they are.
    ``token_mismatch`` is the share of codes, by tokenizer, that come out otherwise when a row of
    each shard is encoded again, alone: 0 on a CPU.
    ``real_time_factor`` is wall time over audio (below 1 is faster than real time).
    """

    run_id: str
    sink: str
    recipe: str
    listed: int
    recordings: int
    rows: int
    failed: int
    gone: int
    already_done: int
    failed_before: int
    pruned: int
    errors: dict[str, int]
    audio_s: float
    wall_s: float
    plan_s: float
    stages_s: dict[str, float]
    commit_s: float
    conflicts: int
    token_mismatch: dict[str, float]
    seconds_mean: float
    seconds_p50: float
    seconds_p95: float
    provenance: dict[str, str]
    stopped: bool

    @property
    def real_time_factor(self) -> float:
        """Wall time over duration of the audio; 0 where there was none."""
        return self.wall_s / self.audio_s if self.audio_s else 0.0

    @property
    def complete(self) -> bool:
        """Whether every recording that was listed has its row."""
        return not (self.failed or self.failed_before or self.stopped)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "real_time_factor": self.real_time_factor}
