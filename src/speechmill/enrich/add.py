"""Columns for rows that are there: ``tokens add`` and ``measure``.

The audio of each row is fetched and cut as the build did it. What is made lies beside the data
until all of it is there (``staging.py``). Then each part gets it by compare-and-swap. Cut short
anywhere, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa

from speechmill._version import __version__
from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import FAILURES
from speechmill.dataset.measured import check_measures
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.run_log import RunLog, new_run_id
from speechmill.dataset.schema import to_parquet
from speechmill.dataset.state import current_recipe, read_recipe, recipe_moved, sink_state
from speechmill.dataset.swap import update
from speechmill.enrich.additions import open_measure_additions, open_token_addition, refuse_another
from speechmill.enrich.audio import decoded_by
from speechmill.enrich.base import Addition, EnrichObserver, EnrichReport
from speechmill.enrich.here import ADDING, make_here
from speechmill.enrich.lookup import Lookup, look_up
from speechmill.enrich.maker import Maker, Outcome
from speechmill.enrich.shards import EnrichedShard, Enrichment, PartsShard, given_up_of, in_shards
from speechmill.errors import DatasetError
from speechmill.pipeline.suspects import InHand
from speechmill.recipe import Recipe
from speechmill.records import number_of
from speechmill.storage import Store, StoreOptions, open_store

__all__ = ["Elsewhere", "EnrichObserver", "EnrichReport", "RunShards", "add_tokens", "measure"]

MERGERS: Final = 4
"""Parts that get their columns at the same time."""
NAMED: Final = 1_000
"""Recordings without values that the report names."""

RunShards = Callable[
    [Enrichment, Sequence[PartsShard], Callable[[], bool]], Iterator[EnrichedShard | None]
]
"""Does shards somewhere: a runner of ``runners/``. Yields None now and then."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An engine that makes what rows lack, instead of this process.

    ``job`` says which engine, and how its workers reach the stores. ``run`` does shards on it, or
    is None, where only the parts of a shard index are to be done, here.
    """

    job: Enrichment
    run: RunShards | None = None


def add_tokens(
    sink: Store,
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    elsewhere: Elsewhere | None = None,
    observer: EnrichObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EnrichReport:
    """Give each row of a sink the tokens of one more tokenizer, in a column of their own.

    They are what a build with this tokenizer gives. Rows whose recording is gone from the source,
    or has changed, get none: the column is null there, and the next build makes anew what has
    changed. Once ``stop()`` is true, what is made is kept, and the report says ``stopped``.

    Args:
        sink: the dataset.
        spec: NAME or NAME:MODEL, as ``tokenizer`` of a job.
        options: the tokenizer's options by name.
        device: auto, cpu, cuda or cuda:1.
        source_url: where the recordings are, if not where the sink says.
        source_options: how to reach them.
        elsewhere: the engine that makes them, or which share of the parts; None for all, here.
        observer: who watches.
        stop: asked between groups of recordings.

    Raises:
        DatasetError: there are no rows; the sink has other tokens of this name; another adding
            has not come to its end; or none of the recordings can be found.
        JobError: there is no such tokenizer or option.
        ModelError: weights cannot be found, or the engine cannot run them.
        StorageError: a store cannot be reached, read or written.
    """
    started = time.monotonic()
    options = dict(options or {})
    source, recipe = _source_and_recipe(sink, source_url, source_options)
    addition = open_token_addition(sink, recipe, spec, options, device)
    refuse_another(sink, recipe, addition.column)
    _refuse_empty(sink)
    told = {"tokenizer": spec, "tokenizer_option": options, "device": device}
    run = _Run(sink, source, recipe, [addition], addition.target.id, observer, stop)
    did = run.run("tokens add", elsewhere, told)
    if not did and run.is_whole and current_recipe(sink) != addition.target.id:
        raise DatasetError(f"there are no rows of its recipe in {sink.url}")
    run.report.mismatch = run.report.mismatch or addition.mismatch
    run.report.wall_s = time.monotonic() - started
    return run.report


def measure(
    sink: Store,
    names: Sequence[str],
    *,
    remake: bool = False,
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    elsewhere: Elsewhere | None = None,
    observer: EnrichObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EnrichReport:
    """Measure those rows of a sink that are not measured yet; see ``MEASURES`` for the names.

    Each recording is fetched and decoded once for all measures. Rows whose recording is gone from
    the source, or has changed, or that cannot be measured, have null. ``remake`` measures all rows
    again where the sink has a measure in another version. All else is as in ``add_tokens``.

    Raises:
        DatasetError: there are no rows; the sink has one of the measures in another version; or
            none of the recordings can be found.
        JobError: there is no such measure.
        ModelError, StorageError: as ``add_tokens``.
    """
    started = time.monotonic()
    source, recipe = _source_and_recipe(sink, source_url, source_options)
    additions = open_measure_additions(sink, recipe, names)
    _refuse_empty(sink)
    if not remake:
        check_measures(sink, tuple(one.described for one in additions))
    run = _Run(sink, source, recipe, additions, recipe.id, observer, stop)
    run.run("measure", elsewhere, {"measures": tuple(names)})
    run.report.wall_s = time.monotonic() - started
    return run.report


def _source_and_recipe(
    sink: Store, source_url: str | None, source_options: StoreOptions
) -> tuple[Store, Recipe]:
    """Where a sink's recordings are, and the recipe of its rows."""
    state = sink_state(sink)
    recipe = read_recipe(sink, str(state["recipe"]))
    if recipe is None:
        raise DatasetError(
            f"the recipe {state['recipe']} of {sink.url} is not kept in it: nobody can say what "
            "made its rows; restore _speechmill/recipes from a backup"
        )
    return open_store(source_url or state["source"], source_options), recipe


def _refuse_empty(sink: Store) -> None:
    if stored_schema(sink) is None:
        raise DatasetError(f"there are no rows in {sink.url}")


class _Run:
    """One enrichment on its way."""

    def __init__(
        self,
        sink: Store,
        source: Store,
        recipe: Recipe,
        additions: Sequence[Addition],
        target: str,
        observer: EnrichObserver | None,
        stop: Callable[[], bool],
    ) -> None:
        self.sink, self.source, self.recipe, self.additions = sink, source, recipe, additions
        self.observer, self.stop = observer or EnrichObserver(), stop
        self.given_up: dict[tuple[int, str], str] = {}
        self.share = 0, 1  # of the parts: index and count
        self.in_hand = InHand(sink, ADDING)
        columns = tuple(field.name for addition in additions for field in addition.fields)
        self.report = EnrichReport(sink.url, columns, target)

    def run(self, what: str, elsewhere: Elsewhere | None, told: Mapping[str, Any]) -> bool:
        """Look what is to be done, and do it. Whether there was anything to do: nothing is written
        where there was not. ``told`` says what workers elsewhere are to make."""
        choices = decoded_by(self.recipe, self.sink.url)
        if elsewhere is not None:
            stagings = tuple(addition.staging.id for addition in self.additions)
            kept = {"source": self.source.url, "recipe": self.recipe.to_json()}
            job = elsewhere.job.model_copy(update={**told, **kept, "stagings": stagings})
            elsewhere = replace(elsewhere, job=job)
            self.share = job.shard_index, job.shard_count
        found = self._look_up()
        report = self.report
        report.already, report.other, report.resumed = found.there, found.other, found.staged
        if not (found.rows or found.staged or self._staged()):
            return False
        next(iter(self.source.list()), None)  # an error, if there is no source
        self.sink.check()
        log = RunLog(self.sink, new_run_id())
        log.event(
            f"{what} started",
            version=__version__,
            source=self.source.url,
            columns=report.columns,
            recipe=report.recipe,
            rows=found.rows,
            resumed=found.staged,
        )
        maker = Maker(self.sink, self.source, self.additions, choices)
        with log.watching():
            self._add(found, partial(self._make, maker, elsewhere))
        for name, reason in report.reasons.items():
            log.event("not made", "warning", file_name=name, reason=reason)
        end = "stopped" if report.stopped else "finished"
        log.event(end, rows=report.rows, resumed=report.resumed, lost=dict(report.lost))
        log.flush(now=True)
        return True

    def _make(
        self, maker: Maker, elsewhere: Elsewhere | None, found: Lookup
    ) -> Iterator[Outcome | None]:
        """Make what parts lack, here or on an engine."""
        if elsewhere is None or elsewhere.run is None:
            yield from make_here(maker, found.parts, self.in_hand, self.given_up, self.stop)
            self._count_seconds(maker.compute_s)
            maker.compute_s = [0.0] * len(self.additions)
            return
        before = self._told_of()
        for done in elsewhere.run(elsewhere.job, in_shards(found.parts), self.stop):
            if done is None:
                yield None
                continue
            yield from done.outcomes
            yield from given_up_of(self.sink, done, self.additions, self.given_up)
            self._count_seconds(done.compute_s)
            self.report.mismatch = self.report.mismatch or next(iter(done.mismatch.values()), ())
        if not self.stop():  # what workers staged and died before they told of it
            self.report.resumed += max(0, found.rows - (self._told_of() - before))

    def _told_of(self) -> int:
        return self.report.rows + sum(self.report.lost.values())

    def _count_seconds(self, compute_s: Sequence[float]) -> None:
        for addition, seconds in zip(self.additions, compute_s, strict=False):
            so_far = self.report.compute_s.get(addition.name, 0.0)
            self.report.compute_s[addition.name] = so_far + seconds

    @property
    def is_whole(self) -> bool:
        """Whether this process does all parts. One share may well have nothing to do."""
        return self.share == (0, 1)

    def _is_ours(self, part_key: str) -> bool:
        """Whether this process does a part, of those that share them by index."""
        index, count = self.share
        return number_of(part_key) % count == index

    def _our_parts(self) -> list[str]:
        return [part.key for part in list_parts(self.sink) if self._is_ours(part.key)]

    def _look_up(self) -> Lookup:
        return look_up(self.sink, self.additions, self.given_up, self._is_ours)

    def _staged(self) -> list[tuple[Addition, str]]:
        """What lies ready for our parts: of which addition, for which part."""
        parts = self._our_parts()
        ready = [(addition, set(addition.staging.keys())) for addition in self.additions]
        return [(a, key) for a, keys in ready for key in parts if a.staging.key(key) in keys]

    def _add(self, found: Lookup, make: Callable[[Lookup], Iterator[Outcome | None]]) -> None:
        """Make what is missing, and put it into the parts; again where a build has added rows
        meanwhile."""
        self.observer.planned(found.rows, found.audio_s, found.staged)
        while found.rows or self._staged():
            if found.rows:
                for outcome in make(found):
                    if outcome is not None:
                        self._count(outcome)
                    self.observer.progress(self.report)
            if self.stop():
                self.report.stopped = True
                return
            self.in_hand.done(self._our_parts())
            if self.is_whole:
                self.in_hand.forget()
            if not self._staged():
                if current_recipe(self.sink) not in (self.recipe.id, self.report.recipe):
                    raise recipe_moved(self.sink)  # a rebuild has taken the rows from under us
                break
            for addition in self.additions:
                addition.before_merging(self.sink)
            self._merge()
            if self.stop():
                self.report.stopped = True
                return
            found = self._look_up()
        report = self.report
        if self.is_whole and report.lost and not (report.rows or report.resumed or report.already):
            raise self._nothing()

    def _count(self, outcome: Outcome) -> None:
        report, name = self.report, outcome.file_name
        if outcome.given_up and all((number, name) in self.given_up for number in outcome.given_up):
            return  # a worker, which is not told what was given up, has tried it again
        report.rows += outcome.num_rows
        report.audio_s += outcome.audio_s
        if not outcome.lost:
            return
        report.lost[outcome.lost] += outcome.lost_rows
        if len(report.reasons) < NAMED:
            report.reasons[name] = outcome.reason
        for number in outcome.given_up:
            self.given_up[number, name] = outcome.lost

    def _merge(self) -> None:
        """Put what lies beside the data into the parts, and remove it there."""
        parts = self._our_parts()
        failures = list_parts(self.sink, FAILURES)
        self.report.parts = len(parts)
        with ThreadPoolExecutor(MERGERS, thread_name_prefix="merge") as pool:
            merged = pool.map(self._merge_part, parts)
            for done, _ in enumerate(merged, 1):
                self.observer.merging(done, len(parts))
            list(pool.map(self._settle_failures, [p.key for p in failures]))
        if not self.stop():
            for addition, part_key in self._staged():
                addition.staging.clear(part_key)

    def _merge_part(self, part_key: str) -> None:
        staged = [addition.staging.read(part_key) for addition in self.additions]

        def put_all_into(part: pa.Table) -> pa.Table | None:
            new = part
            for addition, some in zip(self.additions, staged, strict=True):
                changed = addition.put_into(new, some)
                new = new if changed is None else changed
            return None if new is part else new

        self._change(part_key, put_all_into)

    def _settle_failures(self, part_key: str) -> None:
        for addition in self.additions:
            self._change(part_key, addition.after_merging)

    def _change(self, part_key: str, how: Callable[[pa.Table], pa.Table | None]) -> None:
        """Change a part by compare-and-swap."""

        def change(data: bytes | None) -> bytes | None:
            table = None if data is None else how(read_part(part_key, data))
            return None if table is None else to_parquet(table)

        if not self.stop():
            update(self.sink, part_key, change)

    def _nothing(self) -> DatasetError:
        report = self.report
        what = " and ".join(addition.name for addition in self.additions)
        counts = ", ".join(f"{count:,} {why}" for why, count in report.lost.items())
        name, reason = next(iter(report.reasons.items()))
        return DatasetError(
            f"no row of {report.sink} could be given {what} ({counts}), so nothing was changed; "
            f"{name}: {reason}. The recordings were looked for in {self.source.url}; "
            "--source says where they are"
        )
