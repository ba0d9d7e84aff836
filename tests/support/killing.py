"""Commands that are killed at random moments and started anew, and what they leave in a sink."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from speechmill.storage.base import CHECKS
from tests.support.harness import Command, Finished, Place, ended

__all__ = ["age_leftovers", "copied", "jumpy_clock", "killed_and_finished", "state_of"]

LEFTOVER_S = 30 * 3600
"""What is younger may be of a writer that is at work."""


def jumpy_clock(seed: int) -> dict[str, str]:
    """An environment in which Python's clock jumps by up to twelve hours, forward and back."""
    paths = [str(Path(__file__).parent / "jumpy"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JUMPY": str(seed)}


def killed_and_finished(
    start: Callable[[], Command], whole_s: float, kills: int, draw: Random
) -> tuple[int, Finished]:
    """Kill it so many times, at moments of the ``whole_s`` that it takes, and let it end: how many
    kills found it at work, and how it ended."""
    hits = 0
    for _ in range(kills):
        command = start()
        with ended(command):
            command.finish_after(draw.uniform(0.3, 1.0) * whole_s)
            hits += command.running
            command.kill()
            assert command.finish().code in {0, 3, -signal.SIGKILL}
    return hits, start().finish()


def copied(place: Place, other: Place) -> Place:
    """Copy all of a sink to another place."""
    if place.endpoint_url is None:
        shutil.copytree(place.url, other.url, symlinks=True)
    else:
        store = other.store
        for key, data in place.objects().items():
            store.put(key, data)
    return other


def age_leftovers(place: Place) -> None:
    """Let what dead writers have left in a folder be of yesterday."""
    for path in Path(place.url).rglob("*"):
        if path.is_file() and (path.suffix == ".staged" or path.parent.name in {"staged", "check"}):
            then = time.time() - LEFTOVER_S
            os.utime(path, (then, then))


def state_of(place: Place) -> set[str]:
    """What a sink holds besides data and logs of runs; in a folder, also what is staged. Scratch
    objects of a bucket are left out: they stay for a day, and there they cannot be aged."""
    if place.endpoint_url is None:
        root = Path(place.url)
        keys = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    else:
        keys = [o.key for o in place.store.list() if not o.key.startswith(f"{CHECKS}/")]
    kept = (key for key in keys if not key.startswith(("data/", "failures/", "_speechmill/runs/")))
    return {re.sub(r"(recipes)/.*", r"\1", key) for key in kept}
