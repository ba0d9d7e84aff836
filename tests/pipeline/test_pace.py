"""Calls of the model: how large, and what each one cost."""

from __future__ import annotations

import threading
import time

import pytest

from speechmill.pipeline.pace import MAX_PIECES, Pace


def calls(pace: Pace, number: int, seconds: float) -> list[float]:
    """The costs of so many calls at the same time."""
    found: list[float] = []
    ready = threading.Barrier(number)

    def call() -> None:
        ready.wait()
        with pace.call(1) as cost:
            time.sleep(seconds)
        found.append(cost.seconds)

    threads = [threading.Thread(target=call) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_calls_at_the_same_time_share_the_time_that_passes() -> None:
    pace = Pace(4)
    for number in (1, 3):
        started = time.perf_counter()
        costs = calls(pace, number, 0.2)
        # However late a busy machine wakes them.
        assert 0.2 <= sum(costs) <= time.perf_counter() - started
        time.sleep(0.2)  # nobody's


def test_quick_calls_grow_and_slow_ones_shrink_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = Pace(16)
    for size in (32, 64, 128):
        with pace.call(pace.pieces):
            pass
        assert pace.pieces == size  # at most twice as many at a time
    for _ in range(9):
        with pace.call(pace.pieces):
            pass
    assert pace.pieces == MAX_PIECES
    monkeypatch.setattr("speechmill.pipeline.pace.CALL_S", 1e-6)
    for _ in range(20):
        with pace.call(pace.pieces):
            time.sleep(0.001)
    assert pace.pieces == 1


def test_remainders_and_failures_teach_nothing() -> None:
    pace = Pace(16)
    with pace.call(3):
        pass
    assert pace.pieces == 16
    with pytest.raises(ValueError, match="no"), pace.call(16):
        raise ValueError("no")
    assert pace.pieces == 16
