"""Columns for rows that are there: ``tokens add`` and ``measure``.

The audio of each row is fetched and cut as the build did it. What is made lies beside the data
until all of it is there (``staging.py``). Then each part gets it by compare-and-swap. Cut short
anywhere, the same command goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from speechmill._version import __version__
from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import FAILURES
from speechmill.dataset.measured import agree_on_measures
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.run_log import RunLog, new_run_id
from speechmill.dataset.schema import to_parquet, token_column
from speechmill.dataset.state import current_recipe, read_recipe, sink_state
from speechmill.dataset.swap import update
from speechmill.enrich.audio import keeps_damaged
from speechmill.enrich.base import Addition, EnrichObserver, EnrichReport
from speechmill.enrich.lookup import Lookup, look_up
from speechmill.enrich.maker import Maker, Outcome
from speechmill.enrich.measures import MeasureAddition
from speechmill.enrich.staging import Staging
from speechmill.enrich.tokens import TokenAddition, staging_id
from speechmill.errors import DatasetError, JobError
from speechmill.measures import open_measures
from speechmill.pipeline.tokenize import SampleCheck
from speechmill.recipe import Recipe
from speechmill.storage import Object, Store, StoreOptions, open_store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Codec, Tokenizer
from speechmill.tokenizers.columns import column_of

__all__ = ["EnrichObserver", "EnrichReport", "MakeParts", "add_tokens", "measure"]

MERGERS: Final = 4
"""Parts that get their columns at the same time."""
NAMED: Final = 1_000
"""Recordings without values that the report names."""

MakeParts = Callable[
    [Sequence[Object], Mapping[tuple[int, str], str], Callable[[], bool]], Iterator[Outcome | None]
]
"""Makes what parts lack, and stages it, somewhere: see ``Maker.make``. None now and then."""


def add_tokens(
    sink: Store,
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    elsewhere: Callable[[Sequence[Addition], Recipe], MakeParts] | None = None,
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
        elsewhere: what makes them on an engine; None for this process.
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
    source, recipe = _source_and_recipe(sink, source_url, source_options)
    choice = (spec, dict(options or {}))
    addition = token_addition(sink, recipe, open_tokenizer(*choice, device=device), choice)
    run = _Run(sink, source, recipe, [addition], addition.target.id, observer, stop)
    if not run.run("tokens add", elsewhere) and current_recipe(sink) != addition.target.id:
        raise DatasetError(f"there are no rows of its recipe in {sink.url}")
    run.report.mismatch = addition.mismatch
    run.report.wall_s = time.monotonic() - started
    return run.report


def measure(
    sink: Store,
    names: Sequence[str],
    *,
    remake: bool = False,
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    elsewhere: Callable[[Sequence[Addition], Recipe], MakeParts] | None = None,
    observer: EnrichObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EnrichReport:
    """Measure those rows of a sink that are not measured yet; see ``MEASURES`` for the names.

    Each recording is fetched and decoded once for all measures. Rows whose recording is gone from
    the source, or has changed, or that cannot be measured, have null. Once ``stop()`` is true, what
    is made is kept, and the report says ``stopped``.

    Args:
        sink: the dataset.
        names: of measures.
        remake: measure all rows again where the sink has a measure in another version.
        source_url: where the recordings are, if not where the sink says.
        source_options: how to reach them.
        elsewhere: what measures on an engine; None for this process.
        observer: who watches.
        stop: asked between groups of recordings.

    Raises:
        DatasetError: there are no rows; the sink has one of the measures in another version; or
            none of the recordings can be found.
        JobError: there is no such measure.
        ModelError: weights cannot be found, or the engine cannot run them.
        StorageError: a store cannot be reached, read or written.
    """
    started = time.monotonic()
    source, recipe = _source_and_recipe(sink, source_url, source_options)
    additions = [MeasureAddition.of(one, sink, recipe) for one in open_measures(names)]
    if stored_schema(sink) is None:
        raise DatasetError(f"there are no rows in {sink.url}")
    agree_on_measures(sink, tuple(one.described for one in additions), remake=remake)
    run = _Run(sink, source, recipe, additions, recipe.id, observer, stop)
    run.run("measure", elsewhere)
    run.report.wall_s = time.monotonic() - started
    return run.report


def _source_and_recipe(
    sink: Store, source_url: str | None, source_options: StoreOptions
) -> tuple[Store, Recipe]:
    """Where a sink's recordings are, and the recipe of its rows.

    Raises:
        DatasetError: there is no dataset, or its recipe is lost.
        StorageError: the source cannot be opened.
    """
    state = sink_state(sink)
    recipe = read_recipe(sink, str(state["recipe"]))
    if recipe is None:
        raise DatasetError(
            f"the recipe {state['recipe']} of {sink.url} is not kept in it: nobody can say what "
            "made its rows; restore _speechmill/recipes from a backup"
        )
    return open_store(source_url or state["source"], source_options), recipe


def token_addition(
    sink: Store, recipe: Recipe, tokenizer: Tokenizer, choice: tuple[str, dict[str, Any]]
) -> TokenAddition:
    """The addition of a tokenizer to a sink whose rows are made by ``recipe``.

    Raises:
        DatasetError, JobError: see ``add_tokens``.
    """
    there: dict[str, Any] = dict(recipe.choices.get("tokenizers", {}))
    mine = json.loads(json.dumps({"name": tokenizer.name, **tokenizer.recipe}))
    column = next((c for c, made in there.items() if made["name"] == tokenizer.name), None)
    if column is None:
        if "round_trip" in recipe.choices and isinstance(tokenizer, Codec):
            raise JobError(
                f"{sink.url} holds round_trip_cer, for which decoded codes have to be transcribed: "
                f"speechmill build --rebuild with --tokenizer {choice[0]} added makes both"
            )
        column = token_column(len(there), tokenizer.name)
        base, target = recipe, _with_tokenizers(recipe, {**there, column: mine})
    else:  # done already, or begun
        if there[column] != mine:
            differences = "; ".join(Recipe(there[column]).differences(Recipe(mine)))
            raise DatasetError(
                f"{sink.url} has tokens of {tokenizer.name!r} already, in {column!r}, made in "
                f"another way (sink → this): {differences}. Use another sink, or speechmill build "
                "--rebuild"
            )
        without = {c: made for c, made in there.items() if c != column}
        base, target = _with_tokenizers(recipe, without), recipe
    _refuse_another(sink, recipe, {c: made for c, made in there.items() if c != column})
    if stored_schema(sink) is None:
        raise DatasetError(f"there are no rows in {sink.url}")
    return TokenAddition(
        tokenizer,
        column_of(tokenizer, *choice),
        column,
        base.id,
        target,
        Staging(sink, staging_id(recipe.choices, mine)),
        SampleCheck([tokenizer]),
    )


def _with_tokenizers(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Recipe:
    return replace(recipe, choices={**recipe.choices, "tokenizers": dict(tokenizers)})


def _refuse_another(sink: Store, recipe: Recipe, others: Mapping[str, Any]) -> None:
    """Raise an error if another tokenizer of the recipe is still on its way into the parts."""
    for made in others.values():
        if Staging(sink, staging_id(recipe.choices, made)).keys():
            raise DatasetError(
                f"the tokens of {made['name']!r} have not come into all rows of {sink.url} yet: "
                f"let speechmill tokens add {sink.url} --tokenizer {made['name']} come to its end "
                "first"
            )


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
        columns = tuple(field.name for addition in additions for field in addition.fields)
        self.report = EnrichReport(sink.url, columns, target)

    def run(
        self, what: str, elsewhere: Callable[[Sequence[Addition], Recipe], MakeParts] | None
    ) -> bool:
        """Look what is to be done, and do it. Whether there was anything to do: nothing is written
        where there was not."""
        keep_damaged = keeps_damaged(self.recipe, self.sink.url)
        found = look_up(self.sink, self.additions, self.given_up)
        report = self.report
        report.already, report.other, report.resumed = found.there, found.other, found.staged
        if not (found.pending or self._staged()):
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
        maker = Maker(self.sink, self.source, self.additions, keep_damaged=keep_damaged)
        with log.watching():
            self._add(found, elsewhere(self.additions, self.recipe) if elsewhere else maker.make)
        for addition, seconds in zip(self.additions, maker.compute_s, strict=True):
            report.compute_s[addition.name] = seconds
        for name, reason in report.reasons.items():
            log.event("not made", "warning", file_name=name, reason=reason)
        end = "stopped" if report.stopped else "finished"
        log.event(end, rows=report.rows, resumed=report.resumed, lost=dict(report.lost))
        log.flush(now=True)
        return True

    def _staged(self) -> bool:
        return any(addition.staging.keys() for addition in self.additions)

    def _add(self, found: Lookup, make: MakeParts) -> None:
        """Make what is missing, and put it into the parts; again where a build has added rows
        meanwhile."""
        self.observer.planned(found.rows, found.audio_s, found.staged)
        while found.rows or self._staged():
            if found.rows:
                for outcome in make(found.parts, self.given_up, self.stop):
                    if outcome is not None:
                        self._count(outcome)
                    self.observer.progress(self.report)
            if self.stop():
                self.report.stopped = True
                return
            if not self._staged():
                break
            for addition in self.additions:
                addition.before_merging(self.sink)
            self._merge()
            if self.stop():
                self.report.stopped = True
                return
            found = look_up(self.sink, self.additions, self.given_up)
        if not (self.report.rows or self.report.resumed or self.report.already):
            raise self._nothing()

    def _count(self, outcome: Outcome) -> None:
        report, name = self.report, outcome.asked.recording.file_name
        report.rows += outcome.num_rows
        if not outcome.lost:
            report.audio_s += outcome.asked.audio_s
            return
        report.lost[outcome.lost] += outcome.lost_rows
        if len(report.reasons) < NAMED:
            report.reasons[name] = outcome.reason
        for number in outcome.given_up:
            self.given_up[number, name] = outcome.lost

    def _merge(self) -> None:
        """Put what lies beside the data into the parts, and remove it there."""
        parts = list_parts(self.sink)
        failures = list_parts(self.sink, FAILURES)
        self.report.parts = len(parts)
        with ThreadPoolExecutor(MERGERS, thread_name_prefix="merge") as pool:
            merged = pool.map(self._merge_part, [p.key for p in parts])
            for done, _ in enumerate(merged, 1):
                self.observer.merging(done, len(parts))
            list(pool.map(self._settle_failures, [p.key for p in failures]))
        if not self.stop():
            for addition in self.additions:
                addition.staging.clear()

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
