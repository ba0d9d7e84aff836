"""What ``tokens add`` and ``measure`` share: where recordings are, who writes, which engine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from speechmill.cli.console import err, out
from speechmill.cli.exits import leave, resumable
from speechmill.cli.options import Differing, ReadStorage, Storage
from speechmill.job import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from speechmill.enrich.add import Elsewhere, EnrichReport
    from speechmill.enrich.shards import EnrichedShard, Enrichment, PartsShard
    from speechmill.storage import Store

__all__ = ["Enriching", "Source", "SourceStorage"]

Source = Annotated[
    str | None,
    typer.Option(help="Where the recordings are, if not where the dataset says that they are."),
]
SourceStorage = Annotated[
    ReadStorage,
    Differing(
        "source",
        "the source",
        "SINK",
        ("profile", "endpoint_url", "region", "anonymous", "request_payer"),
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enriching:
    """Where the dataset and its recordings are, who writes, and which engine."""

    storage: Storage
    source: Source = None
    source_storage: SourceStorage
    single_writer: Annotated[
        bool,
        typer.Option(
            "--single-writer",
            help="Vouch that nothing else writes to SINK: allows stores without conditional puts.",
        ),
    ] = False
    engine: EngineOptions

    def run(self, add: Callable[..., EnrichReport], url: str, *what: Any, **how: Any) -> NoReturn:
        """Add columns to the dataset at ``url``, show what comes of it, and end the command."""
        from speechmill.cli.views.tokens import AddDisplay, print_added
        from speechmill.storage.single import SingleWriter

        store = self.storage.open(url)
        sink = SingleWriter(store) if self.single_writer else store
        with resumable() as stop, closing(AddDisplay(err)) as display:
            report = add(
                sink,
                *what,
                source_url=self.source,
                source_options=self.source_storage.options(self.storage),
                elsewhere=self._elsewhere(sink),
                observer=display,
                stop=stop,
                **how,
            )
        print_added(out, report)
        leave(report.complete, stop)

    def _elsewhere(self, sink: Store) -> Elsewhere | None:
        """The engine, or the share of the parts, that is asked for; None for all of it, here."""
        engine = self.engine
        if engine.engine == "local" and engine.shard_count == 1:
            return None
        from speechmill.enrich.add import Elsewhere
        from speechmill.enrich.shards import Enrichment

        source, storage = self.source_storage.options(self.storage), self.storage
        job = Enrichment(
            source=sink.url,  # until the dataset has said where its recordings are
            sink=sink.url,
            profile=source.profile,
            endpoint_url=source.endpoint_url,
            region=source.region,
            anonymous=source.anonymous,
            request_payer=source.request_payer,
            sink_profile=storage.profile,
            sink_endpoint_url=storage.endpoint_url,
            sink_region=storage.region,
            single_writer=self.single_writer,
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
