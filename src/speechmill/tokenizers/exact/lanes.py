"""Threads that compute clips side by side, each on one core.

A sum of floats comes out differently in the last bit on one thread and on two, and in a batch; a
code is the nearest of many, where the last bit may decide. So on a CPU each clip is computed alone
on one thread, and so many clips at a time as there are cores: it is also faster than one clip on
all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from speechmill.machine import num_cores
from speechmill.models.torch import one_thread_workers

__all__ = ["grouped", "side_by_side"]

USUAL: Final = 8
MOST: Final = 12
"""Items of a group: about so many, and at most."""

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Sequence[T], sizes: Sequence[float]) -> list[R]:
    """``function`` of each item, in order: each on one thread of PyTorch, in inference mode.

    Those of the largest ``sizes`` are begun first. If one fails, its error is raised, and those
    that have not begun are left.
    """
    lanes = one_thread_workers()
    order = sorted(range(len(items)), key=lambda i: -sizes[i])
    futures = {i: lanes.submit(_inferring, function, items[i]) for i in order}
    try:
        return [futures[i].result() for i in range(len(items))]
    finally:
        for future in futures.values():
            future.cancel()


def grouped(lengths: Sequence[int], fits: Callable[[int], bool]) -> list[list[int]]:
    """Which items to compute together: numbers of items of like length, each group about as long
    as the others, and as many groups as there are cores or a multiple. What does not fit into a
    group is alone."""
    alone = [[i] for i, length in enumerate(lengths) if not fits(length)]
    order = sorted((i for i, length in enumerate(lengths) if fits(length)), key=lengths.__getitem__)
    cores = num_cores()
    share = sum(lengths[i] for i in order) / (cores * -(-len(order) // (cores * USUAL)) or 1)
    groups: list[list[int]] = []
    length = 0.0
    for i in order:
        if not groups or length >= share or len(groups[-1]) == MOST:
            groups.append([])
            length = 0.0
        groups[-1].append(i)
        length += lengths[i]
    return alone + groups


def _inferring(function: Callable[[T], R], item: T) -> R:
    import torch

    with torch.inference_mode():
        return function(item)
