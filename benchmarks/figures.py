"""What every benchmark prints: the machine it ran on, and a table."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command", "machine", "peak_rss_mb", "print_table", "rss_mb"]

MB = 1_000_000


def command(name: str, doc: str | None, example: str) -> argparse.ArgumentParser:
    """The parser of ``python -m benchmarks.NAME``, with the module's docstring and an example."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        epilog=f"example:\n  python -m benchmarks.{name} {example}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def machine() -> str:
    """Processor, cores, memory, system, date, and how busy it was: figures mean little without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"{_cpu_model()}, {cores} cores, {memory_gb:.0f} GB, {platform.system()}, "
        f"Python {platform.python_version()}; {now:%Y-%m-%d %H:%M} UTC, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def rss_mb() -> float:
    """This process's resident memory now, in MB (10⁶ bytes); its peak where there is no /proc."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """The most resident memory that this process has had, in MB (10⁶ bytes)."""
    return _status_mb("VmHWM")


def _status_mb(key: str) -> float:
    # Not getrusage() where it can be helped: on Linux its peak is handed down through exec, so
    # that a child's may be its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table: text to the left, figures to the right."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    aligned = [
        [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ]
        for r in (list(header), *cells)
    ]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    for row in (aligned[0], rule, *aligned[1:]):
        print("| " + " | ".join(row) + " |", flush=True)
