"""An enrichment in this process. What it works on may end it: what was in hand then is tried alone
by the next command, as in a build, and given up in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from speechmill.enrich.audio import RecordingSpans
from speechmill.enrich.lookup import GivenUp, LackingPart
from speechmill.enrich.maker import Maker, Outcome
from speechmill.enrich.shards import in_shards
from speechmill.errors import WorkerDiedError
from speechmill.pipeline.suspects import DEATHS_ALONE, CrashCounts, InHand
from speechmill.storage import Object

__all__ = ["ADDING", "make_here"]

ADDING: Final = "adding"
"""The kind of work that is noted. Notes of what is in hand name parts, for they are cheap to tell;
a part that is a suspect says by what it lacks which recordings are."""


def make_here(
    maker: Maker,
    parts: Sequence[LackingPart],
    in_hand: InHand,
    given_up: GivenUp,
    stop: Callable[[], bool],
) -> Iterator[Outcome]:
    """Make what parts lack, as ``Maker.make`` does. ``in_hand`` is of the work ``ADDING``."""
    for shard in in_shards(parts):
        suspects = [part for part in shard.parts if in_hand.is_suspect(part.key)]
        rest = [part for part in shard.parts if not in_hand.is_suspect(part.key)]
        with in_hand.note([part.key for part in rest]):
            yield from maker.make(rest, given_up, stop)
        for part in suspects:
            for asked in list(maker.asked([part], given_up)):
                if not stop():
                    yield from _alone(maker, part, asked, given_up, stop)
        if stop():
            return


def _alone(
    maker: Maker,
    part: Object,
    asked: RecordingSpans,
    given_up: GivenUp,
    stop: Callable[[], bool],
) -> Sequence[Outcome]:
    """Make what a recording lacks that may have ended processes, with nothing else in hand."""
    name = asked.recording.file_name

    def work() -> Sequence[Outcome] | None:
        made = list(maker.make([part], given_up, stop, only={name}))
        return None if stop() and not made else made

    def give_up(why: str) -> Sequence[Outcome]:
        reason = f"{WorkerDiedError.__name__}: {why}"
        everything = tuple(range(len(maker.additions)))
        return [Outcome(name, 0.0, 0, len(asked.spans), "failed", reason, everything)]

    return CrashCounts(maker.sink, DEATHS_ALONE, ADDING).alone(name, work, give_up) or ()
