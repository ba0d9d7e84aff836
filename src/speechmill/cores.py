"""How many processor cores are ours: all that count threads ask here."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["limit_cores", "num_cores"]

CGROUP = Path("/sys/fs/cgroup")

_limit: int | None = None


def num_cores() -> int:
    """Cores that this process may use, at least 1: those that the system gives it, no more than its
    container's quota, no more than the limit set."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(n for n in (allowed or 1, _quota(), _limit) if n is not None))


def limit_cores(count: int | None) -> None:
    """Use no more than so many cores from now on, in this process; None for no limit.

    It is for workers that share a machine. What has started its threads keeps them.
    """
    global _limit  # noqa: PLW0603 - it is the process's
    _limit = count


def _quota() -> int | None:
    """The whole cores in the container's CPU quota (cgroup v2, v1), rounded up; None without."""
    try:
        words = (CGROUP / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [
                (CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text().strip()
                for name in ("quota", "period")
            ]
        except OSError:
            return None
    try:
        quota, period = int(words[0]), int(words[1])
    except (IndexError, ValueError):  # "max": no quota
        return None
    return math.ceil(quota / period) if quota > 0 and period > 0 else None
