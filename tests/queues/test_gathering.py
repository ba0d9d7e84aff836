"""How batches are put together; and which offsets of Kafka are settled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from speechmill.queues.gathering import (
    FIRST_SIZE,
    SUSPECT_REDELIVERIES,
    TARGET_S,
    BatchSize,
    max_suspects,
    whole_groups,
)
from speechmill.queues.kafka_partitions import Watermark


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 70))
def test_groups_come_together_and_the_oldest_first(groups: list[int], most: int) -> None:
    items = list(enumerate(groups))
    chosen = whole_groups(items, lambda item: item[1], most)
    assert len(chosen) == min(most, len(items))
    assert len(set(chosen)) == len(chosen)
    if items:
        assert chosen[0] == items[0]
    order = [group for _, group in chosen]
    assert order == sorted(order, key=order.index)  # each group in one piece
    cut = [g for g in set(order) if order.count(g) < groups.count(g)]
    assert len(cut) <= 1  # and at most one of them in part


@given(st.integers(1, 500), st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 500))))
def test_batches_grow_step_by_step_and_stay_short(
    most: int, learned: list[tuple[int, float]]
) -> None:
    size = BatchSize(most)
    assert size.size == min(FIRST_SIZE, most)
    for count, seconds in learned:
        before = size.size
        size.learn(count, seconds)
        assert min(FIRST_SIZE, most) <= size.size <= min(most, 2 * before)
        if size.size > max(before, FIRST_SIZE):
            assert size.size * seconds / count <= TARGET_S * 1.01


@given(st.integers(SUSPECT_REDELIVERIES, 100))
def test_what_workers_died_of_ends_up_alone(deaths: int) -> None:
    assert 1 <= max_suspects(deaths + 1) <= max_suspects(deaths) < FIRST_SIZE
    assert max_suspects(SUSPECT_REDELIVERIES) == FIRST_SIZE // 2
    assert max_suspects(SUSPECT_REDELIVERIES + 4) == 1


@given(st.data())
def test_the_watermark_is_behind_all_that_is_out(data: st.DataObject) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 200), min_size=1)))
    marks = Watermark(base=offsets[0])
    taken: list[int] = []
    settled: set[int] = set()
    waiting = list(offsets)
    while waiting or set(taken) - settled:
        out = sorted(set(taken) - settled)
        if waiting and (not out or data.draw(st.booleans())):
            taken.append(waiting.pop(0))
            marks.take(taken[-1])
        else:
            done = data.draw(st.sampled_from(out))
            settled.add(done)
            marks.settle(done)
        out = sorted(set(taken) - settled)
        assert marks.num_out == len(out)
        assert marks.low == (out[0] if out else taken[-1] + 1)
    assert marks.low == marks.end == offsets[-1] + 1


def test_what_was_not_ours_settles_nothing() -> None:
    marks = Watermark(base=5)
    marks.take(5)
    marks.settle(99)
    assert (marks.low, marks.num_out) == (5, 1)
