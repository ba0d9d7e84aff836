"""The nearest centroid is found exactly; runs are merged and expanded without loss."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from speechmill.errors import JobError, ModelError
from speechmill.tokenizers.nearest import Nearest
from speechmill.tokenizers.units import MAX_RUN, expand_runs, merge_runs


def points(seed: int, count: int, width: int, scale: float = 1.0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return (drawn * scale).astype(np.float32)


def crowded(seed: int, count: int, width: int) -> NDArray[np.float32]:
    """Points of which many are equal, and many as near to something as others."""
    return np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)


def by_hand(frames: NDArray[np.float32], centroids: NDArray[np.float32]) -> list[int]:
    """The first of the nearest, by whole numbers of any size."""
    scale = 2.0**12
    whole = [[round(v * scale) for v in row] for row in frames.astype(float).tolist()]
    others = [[round(v * scale) for v in row] for row in centroids.astype(float).tolist()]
    return [
        min(
            range(len(others)),
            key=lambda i: (sum((a - b) ** 2 for a, b in zip(x, others[i], strict=True)), i),
        )
        for x in whole
    ]


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 24), clusters=st.integers(1, 12))
def test_of_equally_near_ones_the_first_is_taken(seed: int, width: int, clusters: int) -> None:
    centroids, frames = crowded(seed, clusters, width), crowded(seed + 1, 15, width)
    found = Nearest(centroids, np.ones(width, np.float32))(frames)
    assert found.tolist() == by_hand(frames, centroids)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 3, 20, 384, 1280]),
    exponent=st.integers(-20, 20),
)
def test_the_nearest_is_that_of_the_definition(seed: int, width: int, exponent: int) -> None:
    scale = 2.0**exponent
    centroids, frames = points(seed, 40, width, scale), points(seed + 1, 30, width, 1.5 * scale)
    nearest = Nearest(centroids, np.ones(width, np.float32))
    found = nearest(frames)
    wide = frames.astype(np.float64)[:, None] - centroids
    distances = np.square(wide).sum(axis=2)
    chosen = distances[np.arange(len(frames)), found]
    atol = 1e-4 * scale**2  # as whole numbers have 18 bits or more
    assert np.allclose(chosen, distances.min(axis=1), rtol=1e-4, atol=atol)
    assert np.allclose(nearest.distances(frames, found), chosen, rtol=1e-4, atol=atol)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 1500),
    cut=st.integers(0, 1500),
    threads=st.integers(1, 4),
)
def test_blocks_order_and_threads_do_not_matter(
    seed: int, count: int, cut: int, threads: int
) -> None:
    width = 96
    nearest = Nearest(points(7, 100, width), points(8, 1, width)[0] ** 2 + 0.1)
    # Frames between two centroids, where a last bit would decide.
    base = points(7, 100, width)
    pairs = np.random.default_rng(seed).integers(0, 100, (2, count))
    frames = ((base[pairs[0]] + base[pairs[1]]) / 2).astype(np.float32)
    with threadpool_limits(1):
        whole = nearest(frames)
    order = np.random.default_rng(seed).permutation(count)
    with threadpool_limits(threads):
        in_two = np.concatenate([nearest(frames[:cut]), nearest(frames[cut:])])
        shuffled = nearest(np.ascontiguousarray(frames[order]))
        alone = [int(nearest(frame[None])[0]) for frame in frames[:20]]
    assert np.array_equal(whole, in_two)
    assert np.array_equal(whole[order], shuffled)
    assert whole[:20].tolist() == alone


def test_sums_stay_below_what_float64_holds() -> None:
    for width in (1, 2, 20, 384, 512, 1280, 5000):
        centroids = np.full((3, width), -1.0, np.float32)
        centroids[1] = 0.999
        nearest = Nearest(centroids, np.ones(width, np.float32))
        frames = np.full((2, width), 1e30, np.float32)  # far beyond the centroids: cut off
        frames[1] = -1e30
        limit = nearest._limit
        assert 3 * width * limit**2 <= 2**53
        assert nearest(frames).tolist() == [1, 0]


def test_weights_decide_what_counts() -> None:
    centroids = np.array([[0, 0], [10, 1]], np.float32)
    frame = np.array([[6, 0]], np.float32)
    assert Nearest(centroids, np.array([1, 1], np.float32))(frame).tolist() == [1]
    assert Nearest(centroids, np.array([0.1, 10], np.float32))(frame).tolist() == [0]


def test_frames_of_another_width_or_not_finite_are_refused() -> None:
    nearest = Nearest(points(0, 5, 8), np.ones(8, np.float32))
    with pytest.raises(ModelError, match="fitted on"):
        nearest(points(0, 3, 9))
    with pytest.raises(ModelError, match="not finite"):
        nearest(np.full((2, 8), np.nan, np.float32))


@settings(deadline=None, max_examples=200)
@given(
    runs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700)), max_size=12),
    dtype=st.sampled_from([np.int16, np.int32, np.int64]),
)
def test_merged_runs_expand_to_what_they_were(
    runs: list[tuple[int, int]], dtype: type[np.signedinteger]
) -> None:
    units = np.array([unit for unit, count in runs for _ in range(count)], dtype)[None]
    merged = merge_runs(units)
    assert merged.dtype == dtype
    assert np.array_equal(expand_runs(merged), units)
    codes, durations = merged
    assert durations.sum() == units.shape[1]
    assert np.all((durations >= 1) & (durations <= MAX_RUN))
    same = codes[1:] == codes[:-1]
    assert np.all(durations[:-1][same] == MAX_RUN)  # only a run that is full goes on as another


def test_what_is_no_runs_is_not_expanded() -> None:
    for values in (np.zeros((1, 5), np.int16), np.zeros((2, 5), np.int16)):
        with pytest.raises(JobError, match="merge"):
            expand_runs(values)


def test_blas_has_its_threads_again_afterwards() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    nearest = Nearest(points(0, 50, 64), np.ones(64, np.float32))
    frames = points(1, 3000, 64)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: nearest(frames), range(40)))
    assert threads() == before
