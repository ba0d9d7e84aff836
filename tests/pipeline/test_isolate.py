"""Only the guilty fail; and an engine that fails again and again ends the job."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from speechmill.pipeline.isolate import FIRST_MODEL_ERRORS, MODEL_ERRORS, Breaker, all_or_each


@given(st.lists(st.booleans(), max_size=12))
def test_only_the_guilty_fail_and_all_others_are_done_once(good: list[bool]) -> None:
    done: list[int] = []
    failed: list[int] = []

    def call(items: Sequence[int]) -> None:
        for item in items:
            if not good[item]:
                raise ValueError(item)
        done.extend(items)

    all_or_each(range(len(good)), call, lambda item, error: failed.append(item))
    assert done == [i for i, one in enumerate(good) if one]
    assert failed == [i for i, one in enumerate(good) if not one]


def test_an_engine_that_never_worked_is_given_up_sooner() -> None:
    breaker = Breaker()
    assert [breaker.failed() for _ in range(FIRST_MODEL_ERRORS)] == [False, False, True]
    breaker.worked()
    assert [breaker.failed() for _ in range(MODEL_ERRORS)].index(True) == MODEL_ERRORS - 1
