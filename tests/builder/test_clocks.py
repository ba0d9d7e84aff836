"""A clock that jumps by hours, forward and back: rows and commits are as they would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chaos import Chaos
from tests.support.harness import Build, Place, Poller, assert_same_dataset, corpus, ended
from tests.support.harness import fill_folder as fill
from tests.support.killing import jumpy_clock, killed_and_finished

FILES = corpus(8, 3, broken=2)
DONE_WITH_FAILURES = 3
ROUNDS, MANY_ROUNDS = 1, 10_000


@pytest.mark.timeout(900)
def test_builds_by_clocks_that_jump_make_the_same_rows_also_two_at_once_and_killed(
    tmp_path: Path, chaos: Chaos
) -> None:
    source, whole = fill(tmp_path / "corpus", FILES), Place(str(tmp_path / "whole"))
    undisturbed = Build(source.url, whole.url, seconds=0.02).finish()
    assert undisturbed.code == DONE_WITH_FAILURES, undisturbed.err
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("clock", number)
        sink = Place(str(tmp_path / f"sink-{number}"))

        def build(clock: int, to: str = sink.url) -> Build:
            return Build(source.url, to, seconds=0.02, env=jumpy_clock(clock))

        with Poller(sink, pause_s=0.05) as poller:
            other = build(draw.randrange(10**6))
            with ended(other):
                kills, finished = killed_and_finished(
                    lambda: build(draw.randrange(10**6)),  # noqa: B023 - it is called at once
                    *(undisturbed.seconds, chaos.choose(1, draw.randrange(1, 4)), draw),
                )
                also = other.finish()
        assert {finished.code, also.code} <= {0, DONE_WITH_FAILURES}, (finished.err, also.err)
        assert Build(source.url, sink.url).finish().code in {0, DONE_WITH_FAILURES}
        assert not poller.wrong
        assert_same_dataset(sink, whole, attempts=False)
        chaos.count("builds", 3 + kills)
        chaos.count("kills", kills)
