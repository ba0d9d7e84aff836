"""The plan of an epoch: which rank and worker reads which rows, in which order and batches.

All of it follows from the index, a seed and the number of the epoch, so every rank and worker can
compute its own share, and that of all others, without communication. The parts are put into a
random order and their rows one after another; ranks, and the workers of a rank, take consecutive
pieces of that. So each part is read by one worker, or by two that share it. Within its piece a
worker shuffles *windows*: parts one after another until there are enough rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechmill.dataset.index import Index
from speechmill.errors import JobError

__all__ = ["Even", "Order", "Share", "num_batches", "windows", "windows_of_batches"]

Even = Literal["drop", "repeat"]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """One worker of one rank among all.

    Raises:
        JobError: there is no such rank or worker.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or not 0 <= self.worker < self.num_workers:
            raise JobError(f"there is no {self}: ranks and workers count from 0")


@dataclass(frozen=True, slots=True)
class Order:
    """The order of an epoch. ``window``: rows that are shuffled among each other, or a few more.

    ``batch_size`` (rows) and ``max_frames`` (frames with padding: the number of rows × the longest
    of them) bound a batch; ``by_length`` batches rows of a window by similar length, else
    in their order. ``even`` gives all ranks equally many rows, or batches: "drop" leaves some out,
    "repeat" takes some twice, None does neither.

    Raises:
        JobError: a number is below 1 (the seed: below 0), or ``even`` is another word.
    """

    shuffle: bool = True
    seed: int = 0
    window: int = 4_096
    batch_size: int | None = None
    max_frames: int | None = None
    by_length: bool = True
    even: Even | None = None

    def __post_init__(self) -> None:
        for name in ("window", "batch_size", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise JobError(f"{name}={value}: it must be 1 at least")
        if self.seed < 0:
            raise JobError(f"seed={self.seed}: it must not be negative")
        if self.even not in (None, "drop", "repeat"):
            raise JobError(f"even={self.even!r}: it must be 'drop', 'repeat' or None")


def windows(index: Index, order: Order, epoch: int, share: Share) -> Iterator[Rows]:
    """Yield the rows of a share, window by window: int64 numbers into the index.

    With ``order.even`` all ranks have equally many. Together the ranks have every row once, but for
    those that ``even`` drops (fewer than there are ranks) or repeats (as few).
    """
    rng = np.random.default_rng([order.seed, epoch])
    num_parts = len(index.parts)
    parts = rng.permutation(num_parts) if order.shuffle else np.arange(num_parts)
    counts = np.diff(index.offsets)[parts]
    ends = np.cumsum(counts)
    current: list[Rows] = []
    for first, last in _ranges(index.num_rows, order.even, share):
        at = int(np.searchsorted(ends, first, side="right"))
        done = first
        while done < last:
            end = min(int(ends[at]), last)
            start_of_part = int(ends[at] - counts[at])
            offset = int(index.offsets[parts[at]]) - start_of_part
            current.append(np.arange(done + offset, end + offset))
            if sum(map(len, current)) >= order.window:
                yield _shuffled(current, order, epoch)
                current = []
            done, at = end, at + 1
    if current:
        yield _shuffled(current, order, epoch)


def _ranges(num_rows: int, even: Even | None, share: Share) -> list[tuple[int, int]]:
    """Compute the share as ranges of positions: one, or two where it wraps around."""
    if not num_rows:
        return []
    world, workers = share.world_size, share.num_workers
    if even is None:
        first, last = (num_rows * (share.rank + k) // world for k in (0, 1))
    else:
        each = num_rows // world if even == "drop" else -(-num_rows // world)
        first, last = each * share.rank, each * (share.rank + 1)
    length = last - first
    last = first + length * (share.worker + 1) // workers
    first += length * share.worker // workers
    return [
        (max(first, turn) - turn, min(last, turn + num_rows) - turn)
        for turn in range(first // num_rows * num_rows, last, num_rows)
        if first < last
    ]


def _shuffled(segments: Sequence[Rows], order: Order, epoch: int) -> Rows:
    rows = np.concatenate(segments)
    if not order.shuffle:
        return rows
    rng = np.random.default_rng([order.seed, epoch, int(rows[0]), len(rows)])
    return rng.permutation(rows)


def windows_of_batches(
    index: Index, frames: NDArray[np.int64], order: Order, epoch: int, share: Share
) -> Iterator[list[Rows]]:
    """Yield the batches of a share, window by window. ``frames``: int64 [num_rows], of each row.

    With ``order.even`` all ranks have equally many, if they all have as many workers.
    """
    found = _batches(index, frames, order, epoch, share)
    if order.even is None or share.world_size == 1:
        yield from found
        return
    mine = list(found)
    quota = _quota(index, frames, order, epoch, share)
    for window in mine:
        if quota <= 0:
            return
        yield window[:quota]
        quota -= len(window)
    again = [batch for window in mine for batch in window]
    if quota > 0:
        yield [again[i % len(again)] for i in range(quota)]


def num_batches(
    index: Index, frames: NDArray[np.int64], order: Order, epoch: int, share: Share
) -> int:
    """Count the batches of a share."""
    return sum(map(len, windows_of_batches(index, frames, order, epoch, share)))


def _quota(index: Index, frames: NDArray[np.int64], order: Order, epoch: int, share: Share) -> int:
    """Compute how many batches a worker must have so that all ranks have equally many."""

    def count(rank: int, worker: int) -> int:
        one = replace(share, rank=rank, worker=worker)
        return sum(map(len, _batches(index, frames, order, epoch, one)))

    workers = range(share.num_workers)
    counts = [[count(rank, worker) for worker in workers] for rank in range(share.world_size)]
    totals = [sum(of_rank) for of_rank in counts]
    target = min(totals) if order.even == "drop" else max(totals)
    mine = counts[share.rank]
    # One by one from or to the worker that has most: it is the last that has none.
    while sum(mine) != target:
        most = int(np.argmax(mine))
        mine[most] += 1 if sum(mine) < target else -1
    return mine[share.worker]


def _batches(
    index: Index, frames: NDArray[np.int64], order: Order, epoch: int, share: Share
) -> Iterator[list[Rows]]:
    found = windows(index, order, epoch, share)
    if not order.by_length:
        rows = np.concatenate([np.empty(0, np.int64), *found])
        yield _cut_batches(rows, frames[rows], order)
        return
    for window in found:
        rows = window[np.argsort(frames[window], kind="stable")]
        batches = _cut_batches(rows, frames[rows], order)
        if order.shuffle:
            rng = np.random.default_rng([order.seed, epoch, int(window[0]), len(window), 1])
            batches = [batches[i] for i in rng.permutation(len(batches))]
        yield batches


def _cut_batches(rows: Rows, frames: NDArray[np.int64], order: Order) -> list[Rows]:
    """Cut consecutive rows into batches as large as the bounds allow."""
    if not len(rows):
        return []
    cuts = [0]
    longest = 0
    for i, length in enumerate(frames.tolist()):
        longest = max(longest, length)
        size = i + 1 - cuts[-1]
        too_many = order.batch_size is not None and size > order.batch_size
        too_long = order.max_frames is not None and size * longest > order.max_frames
        if size > 1 and (too_many or too_long):
            cuts.append(i)
            longest = length
    return [rows[a:b] for a, b in zip(cuts, [*cuts[1:], len(rows)], strict=True)]
