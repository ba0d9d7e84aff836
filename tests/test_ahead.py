"""What is begun ahead: in order, and no more than there is room for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.ahead import ahead


@given(st.lists(st.floats(0, 10), max_size=30), st.integers(1, 6), st.floats(0.5, 30))
def test_all_comes_in_order_and_no_more_is_on_its_way_than_there_is_room_for(
    costs: list[float], most: int, most_cost: float
) -> None:
    flying: list[int] = []

    def begin(item: tuple[int, float]) -> Future[int]:
        flying.append(item[0])
        assert len(flying) <= most
        assert len(flying) == 1 or sum(costs[i] for i in flying) <= most_cost + 1e-9
        future: Future[int] = Future()
        future.set_result(item[0] * 2)
        return future

    items = list(enumerate(costs))
    came = []
    for item, result in ahead(
        items, begin, most=lambda: most, cost=lambda item: item[1], most_cost=most_cost
    ):
        flying.remove(item[0])
        came.append((item, result))
    assert came == [((i, c), 2 * i) for i, c in items]


def test_an_item_that_fails_is_heard_of_in_its_turn_and_the_rest_is_cancelled() -> None:
    futures: list[Future[int]] = []

    def begin(item: int) -> Future[int]:
        future: Future[int] = Future()
        if item < 2:
            future.set_result(item)
        elif item == 2:
            future.set_exception(ValueError("two"))
        futures.append(future)
        return future

    looking = ahead(range(10), begin, most=4)
    assert [next(looking)[0], next(looking)[0]] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(looking)
    assert [future.cancelled() for future in futures[3:]] == [True] * len(futures[3:])
    assert len(futures) > 3


def test_whoever_stops_leaves_nothing_that_has_not_begun() -> None:
    with ThreadPoolExecutor(1) as pool:
        futures: list[Future[int]] = []

        def begin(item: int) -> Future[int]:
            futures.append(pool.submit(lambda: item))
            return futures[-1]

        looking = ahead(range(1_000_000_000), begin, most=3)
        assert next(looking) == (0, 0)
        looking.close()
        assert len(futures) == 3
