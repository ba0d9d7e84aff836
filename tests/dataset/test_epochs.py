"""Who reads which rows in an epoch: every row once, whatever the ranks and workers."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.dataset.epochs import Order, Share, num_batches, windows, windows_of_batches
from speechmill.dataset.index import Index
from speechmill.dataset.schema import row_schema
from speechmill.errors import JobError
from speechmill.storage import Object

SCHEMA = row_schema(())


def index_of(counts: list[int]) -> Index:
    """Parts of so many rows."""
    rows = sum(counts)
    return Index(
        SCHEMA,
        tuple(Object(f"data/{i}", 1, "e", 1) for i in range(len(counts))),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)]),
        np.arange(rows, dtype=np.uint64),
        np.ones(rows),
    )


def shares(world_size: int, num_workers: int) -> list[list[Share]]:
    """All shares, by rank."""
    return [
        [Share(rank, world_size, worker, num_workers) for worker in range(num_workers)]
        for rank in range(world_size)
    ]


indexes = st.lists(st.integers(1, 30), max_size=12).map(index_of)
orders = st.builds(
    Order,
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
    window=st.integers(1, 60),
    batch_size=st.none() | st.integers(1, 9),
    max_frames=st.none() | st.integers(1, 200),
    by_length=st.booleans(),
    even=st.sampled_from([None, "drop", "repeat"]),
)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4))


def check_once(by_rank: list[list[int]], num_rows: int, even: str | None) -> None:
    times = Counter(itertools.chain.from_iterable(by_rank))
    assert times.keys() <= set(range(num_rows))
    if even != "repeat":
        assert max(times.values(), default=0) <= 1
    if even != "drop":
        assert len(times) == num_rows


@settings(max_examples=150, deadline=None)
@given(indexes, orders, sizes, st.integers(0, 2))
def test_every_row_comes_once_over_all_ranks_and_workers(
    index: Index, order: Order, size: tuple[int, int], epoch: int
) -> None:
    found = [
        [int(row) for share in rank for w in windows(index, order, epoch, share) for row in w]
        for rank in shares(*size)
    ]
    check_once(found, index.num_rows, order.even)
    lengths = {len(rows) for rows in found}
    assert max(lengths) - min(lengths) <= (order.even is None)
    beyond = size[0] * max(lengths) - index.num_rows
    assert abs(beyond) < size[0] or order.even is None
    if size == (1, 1) and not order.shuffle:
        assert found[0] == list(range(index.num_rows))


def frames_of(index: Index) -> NDArray[np.int64]:
    return np.asarray(np.random.default_rng(index.num_rows).integers(1, 90, index.num_rows))


@settings(max_examples=200, deadline=None)
@given(indexes, orders, sizes, st.integers(0, 2))
def test_batches_have_every_row_once_within_their_bounds(
    index: Index, order: Order, size: tuple[int, int], epoch: int
) -> None:
    frames = frames_of(index)
    by_rank: list[list[int]] = []
    counts = []
    for rank in shares(*size):
        batches: list[NDArray[Any]] = [
            batch
            for share in rank
            for window in windows_of_batches(index, frames, order, epoch, share)
            for batch in window
        ]
        counts.append(len(batches))
        assert counts[-1] == sum(num_batches(index, frames, order, epoch, s) for s in rank)
        by_rank.append([int(row) for batch in batches for row in batch])
        for batch in batches:
            assert len(batch)
            assert order.batch_size is None or len(batch) <= order.batch_size
            fits = order.max_frames is None or len(batch) * frames[batch].max() <= order.max_frames
            assert fits or len(batch) == 1
    if order.even is not None and size[0] > 1:
        assert len(set(counts)) == 1
    if order.even != "drop":
        assert set(itertools.chain.from_iterable(by_rank)) == set(range(index.num_rows))
    if order.even is None:
        check_once(by_rank, index.num_rows, None)


@settings(max_examples=50, deadline=None)
@given(indexes, sizes, st.booleans())
def test_parts_are_shared_by_neighbours_only(
    index: Index, size: tuple[int, int], shuffle: bool
) -> None:
    order = Order(shuffle=shuffle)
    readers = [
        {index.part_of(int(row)) for w in windows(index, order, 0, share) for row in w}
        for share in itertools.chain.from_iterable(shares(*size))
    ]
    assert sum(map(len, readers)) <= len(index.parts) + len(readers) - 1


def test_a_window_is_no_larger_than_asked_for_and_one_part() -> None:
    index = index_of([7] * 40)
    found = list(windows(index, Order(window=20), 0, Share()))
    assert {len(w) for w in found[:-1]} == {21}
    assert all(len({index.part_of(int(row)) for row in w}) == 3 for w in found[:-1])


def test_epochs_differ_and_are_the_same_again() -> None:
    index = index_of([10] * 10)

    def epoch(number: int, seed: int = 0) -> list[int]:
        found = windows(index, Order(seed=seed, window=30), number, Share())
        return [int(row) for w in found for row in w]

    assert epoch(0) == epoch(0)
    assert len({tuple(epoch(0)), tuple(epoch(1)), tuple(epoch(0, seed=1))}) == 3
    parts = [index.part_of(row) for row in epoch(0)]
    assert parts[:30] != sorted(parts[:30], key=parts.index)  # mixed within a window


def test_batches_by_length_pad_less() -> None:
    index = index_of([50] * 10)
    frames = frames_of(index)

    def padded(by_length: bool) -> int:
        order = Order(batch_size=8, by_length=by_length, window=250)
        found = windows_of_batches(index, frames, order, 0, Share())
        return sum(int(frames[b].max()) * len(b) for window in found for b in window)

    assert padded(True) < 1.1 * frames.sum()
    assert padded(False) > 1.5 * frames.sum()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Order(window=0),
        lambda: Order(batch_size=0),
        lambda: Order(max_frames=-1),
        lambda: Order(seed=-1),
        lambda: Order(even="some"),  # type: ignore[arg-type]
        lambda: Share(2, 2),
        lambda: Share(0, 1, 1, 1),
    ],
)
def test_what_makes_no_sense_is_an_error(wrong: Any) -> None:
    with pytest.raises(JobError):
        wrong()
