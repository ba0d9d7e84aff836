"""What every runner does, whichever engine is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from speechmill.enrich.shards import Enrichment, PartsShard
from speechmill.job import Job
from speechmill.records import RecordingDone, Shard, ShardReport

__all__ = ["AnyJob", "AnyShard", "EngineRunner", "Runner"]


AnyJob = Job | Enrichment
AnyShard = Shard | PartsShard
"""What our own runners take: a build's shards of recordings, or an enrichment's of parts."""


class Runner(Protocol):
    """Calls ``process_shard`` for each shard, somewhere."""

    def run(
        self,
        job: Job,
        shards: Iterable[Shard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport | None]:
        """Run the shards and yield their reports as they finish.

        None is yielded now and then while there is none, so that the caller can look around.
        Once ``stop()`` is true no shard is begun, and those in hand are given up cleanly.
        ``on_done`` is told of each recording as it is done, from any thread; a runner that cannot
        look into its workers calls it when the shard's report comes.

        Raises:
            SpeechmillError: the job cannot go on; see ``process_shard``.
        """


class EngineRunner(Runner, Protocol):
    """A runner that takes enrichments, too: for their shards it calls ``enrich_shard``."""

    def run(
        self,
        job: AnyJob,
        shards: Iterable[AnyShard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport | None]:
        """See ``Runner.run``. The reports of an enrichment are ``EnrichedShard``."""
