"""Threads that compute clips side by side, each on one core.

A sum of floats comes out differently in the last bit on one thread and on two, and in a batch; a
code is the nearest of many, where the last bit may decide. So on a CPU each clip is computed alone
on one thread, and as many clips at a time as there are cores, which is also faster than one clip on
all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from speechmill.models.torch import one_thread_workers

__all__ = ["side_by_side"]

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Sequence[T], sizes: Sequence[float]) -> list[R]:
    """Apply ``function`` to each item, on one thread of PyTorch and in inference mode.

    Returns the results in the order of ``items``.

    Items of the largest ``sizes`` start first. If one fails, its error is raised, and those that
    have not started are cancelled.
    """
    lanes = one_thread_workers()
    order = sorted(range(len(items)), key=lambda i: -sizes[i])
    futures = {i: lanes.submit(_inferring, function, items[i]) for i in order}
    try:
        return [futures[i].result() for i in range(len(items))]
    finally:
        for future in futures.values():
            future.cancel()


def _inferring(function: Callable[[T], R], item: T) -> R:
    import torch

    with torch.inference_mode():
        return function(item)
