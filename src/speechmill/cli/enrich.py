"""What ``tokens add`` and ``measure`` share: where recordings are, who writes, which engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from speechmill.cli.options import Differing, Storage
from speechmill.job import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from speechmill.enrich.add import Elsewhere
    from speechmill.enrich.shards import EnrichedShard, Enrichment, PartsShard
    from speechmill.storage import Store

__all__ = ["SingleWriterFlag", "Source", "SourceStorage", "elsewhere", "open_writable"]

Source = Annotated[
    str | None,
    typer.Option(help="Where the recordings are, if not where the dataset says that they are."),
]
SourceStorage = Annotated[Storage, Differing("source", "the source", "SINK")]
SingleWriterFlag = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Vouch that nothing else writes to SINK: allows stores without conditional puts.",
    ),
]


def open_writable(storage: Storage, sink: str, *, single_writer: bool) -> Store:
    """The sink, to be written to."""
    store = storage.open(sink)
    if not single_writer:
        return store
    from speechmill.storage.single import SingleWriter

    return SingleWriter(store)


def elsewhere(
    sink: Store,
    storage: Storage,
    source_storage: Storage,
    engine: EngineOptions,
) -> Elsewhere | None:
    """The engine, or the share of the parts, that flags ask for; None for all of it, here."""
    if engine.engine == "local" and engine.shard_count == 1:
        return None
    from speechmill.enrich.add import Elsewhere
    from speechmill.enrich.shards import Enrichment
    from speechmill.storage.single import SingleWriter

    job = Enrichment(
        source=sink.url,  # until the dataset has said where its recordings are
        sink=sink.url,
        profile=source_storage.profile or storage.profile,
        endpoint_url=source_storage.endpoint_url or storage.endpoint_url,
        region=source_storage.region or storage.region,
        sink_profile=storage.profile,
        sink_endpoint_url=storage.endpoint_url,
        sink_region=storage.region,
        single_writer=isinstance(sink, SingleWriter),
        **engine.model_dump(),
    )
    return Elsewhere(job, None if engine.engine == "local" else _run_shards)


def _run_shards(
    job: Enrichment, shards: Sequence[PartsShard], stop: Callable[[], bool]
) -> Iterator[EnrichedShard | None]:
    """Do shards by the runner that the job names."""
    from speechmill.enrich.shards import EnrichedShard
    from speechmill.runners import open_runner

    for report in open_runner(job).run(job, shards, stop=stop, on_done=lambda _: None):
        yield report if isinstance(report, EnrichedShard) else None
