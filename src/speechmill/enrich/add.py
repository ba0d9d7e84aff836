"""``tokens add``: one more column of tokens for a dataset, without transcribing again.

The audio of each row is fetched and cut as the build did it. What is made lies beside the data
until all of it is there (``dataset/additions.py``). Then the sink's recipe moves on, and each part
gets its tokens by compare-and-swap. Cut short anywhere, the same command goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from speechmill._version import __version__
from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import FAILURES
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.run_log import RunLog, new_run_id
from speechmill.dataset.schema import to_parquet, token_column, with_tokenizer
from speechmill.dataset.state import current_recipe, move_recipe, read_recipe, sink_state
from speechmill.dataset.swap import update
from speechmill.enrich.audio import keeps_damaged
from speechmill.enrich.maker import AddObserver, AddReport, Look, Maker
from speechmill.enrich.staging import (
    Addition,
    Staging,
    put_into,
    staging_id,
    with_recipe,
)
from speechmill.errors import DatasetError, JobError, SpeechmillError
from speechmill.recipe import Recipe
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Codec, Tokenizer
from speechmill.tokenizers.columns import column_of

__all__ = ["AddObserver", "AddReport", "add_tokens"]

MERGERS: Final = 4  # parts that get their tokens at the same time


class _Nobody:
    def planned(self, rows: int, audio_s: float, resumed: int) -> None:
        """See ``AddObserver``."""

    def progress(self, report: AddReport) -> None:
        """See ``AddObserver``."""

    def merging(self, done: int, total: int) -> None:
        """See ``AddObserver``."""


def add_tokens(
    sink: Store,
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    source_url: str | None = None,
    source_options: StoreOptions = StoreOptions(),  # noqa: B008 it is frozen
    observer: AddObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> AddReport:
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
        observer: who watches.
        stop: asked between groups of recordings.

    Raises:
        DatasetError: there are no rows; the sink has other tokens of this name; another adding
            has not come to its end; or none of the recordings is to be had.
        JobError: there is no such tokenizer or option.
        ModelError: weights cannot be found, or the engine cannot run them.
        StorageError: a store cannot be reached, read or written.
    """
    started = time.monotonic()
    state = sink_state(sink)
    recipe = read_recipe(sink, str(state["recipe"]))
    if recipe is None:
        raise DatasetError(
            f"the recipe {state['recipe']} of {sink.url} is not kept in it: nobody can say what "
            "made its rows; restore _speechmill/recipes from a backup"
        )
    choice = (spec, dict(options or {}))
    tokenizer = open_tokenizer(*choice, device=device)
    addition, staging = _plan(sink, recipe, tokenizer, choice)
    report = AddReport(sink.url, addition.column, addition.target.id)
    maker = Maker(
        sink,
        open_store(source_url or state["source"], source_options),
        addition,
        staging,
        report,
        keep_damaged=keeps_damaged(recipe, sink.url),
    )
    _Run(maker, observer or _Nobody(), stop).run()
    report.wall_s = time.monotonic() - started
    return report


def _plan(
    sink: Store, recipe: Recipe, tokenizer: Tokenizer, choice: tuple[str, dict[str, Any]]
) -> tuple[Addition, Staging]:
    """What is to be added, and where what is made lies until then.

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
    schema = stored_schema(sink)
    if schema is None:
        raise DatasetError(f"there are no rows in {sink.url}")
    described = column_of(tokenizer, *choice)
    of_type = with_tokenizer(schema, column, described).field(column).type
    addition = Addition(tokenizer, described, column, of_type, base.id, target)
    return addition, Staging(sink, staging_id(recipe.choices, mine))


def _with_tokenizers(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Recipe:
    return replace(recipe, choices={**recipe.choices, "tokenizers": dict(tokenizers)})


def _refuse_another(sink: Store, recipe: Recipe, others: Mapping[str, Any]) -> None:
    """That no other tokenizer of the recipe is still on its way into the parts."""
    for made in others.values():
        if Staging(sink, staging_id(recipe.choices, made)).keys():
            raise DatasetError(
                f"the tokens of {made['name']!r} have not come into all rows of {sink.url} yet: "
                f"let speechmill tokens add {sink.url} --tokenizer {made['name']} come to its end "
                "first"
            )


class _Run:
    """One adding on its way."""

    def __init__(self, maker: Maker, observer: AddObserver, stop: Callable[[], bool]) -> None:
        self.maker, self.observer, self.stop = maker, observer, stop
        self.sink, self.addition, self.staging = maker.sink, maker.addition, maker.staging
        self.report = maker.report

    def run(self) -> None:
        """Look what is to be done, and do it; nothing is written where there is nothing."""
        looked = self.maker.look()
        report = self.report
        report.already, report.other, report.resumed = looked.done, looked.other, looked.staged
        if not (looked.base or self.staging.keys()):
            if current_recipe(self.sink) != self.addition.target.id:
                raise DatasetError(f"there are no rows of its recipe in {self.sink.url}")
            return
        next(iter(self.maker.source.list()), None)  # that there is a source
        self.sink.check()
        log = RunLog(self.sink, new_run_id())
        log.event(
            "tokens add started",
            version=__version__,
            source=self.maker.source.url,
            column=self.addition.column,
            recipe=self.addition.target.id,
            rows=looked.rows,
            resumed=looked.staged,
        )
        try:
            self._add(looked)
        except BaseException as error:
            log.event("broken off", "error", error=type(error).__name__, message=str(error))
            with suppress(SpeechmillError):
                log.flush(now=True)
            raise
        for name, reason in report.reasons.items():
            log.event("no tokens", "warning", file_name=name, reason=reason)
        end = "stopped" if report.stopped else "finished"
        log.event(end, rows=report.rows, resumed=report.resumed, lost=dict(report.lost))
        log.flush(now=True)

    def _add(self, looked: Look) -> None:
        """Make what is missing, move the recipe on, and put the tokens into the parts; again where
        a build has added rows meanwhile."""
        self.observer.planned(looked.rows, looked.audio_s, looked.staged)
        while looked.rows or self.staging.keys():
            if looked.rows:
                self.maker.make(looked.parts, self.observer, self.stop)
            if self.stop():
                self.report.stopped = True
                return
            if not self.staging.keys():
                break
            # First the recipe: from now on a build by the old one undoes nothing of what comes.
            move_recipe(self.sink, self.addition.base, self.addition.target)
            self._merge()
            if self.stop():
                self.report.stopped = True
                return
            looked = self.maker.look()
        if not (self.report.rows or self.report.resumed or self.report.already):
            raise self._nothing()

    def _merge(self) -> None:
        """Put what lies beside the data into the parts, and remove it there."""
        parts = list_parts(self.sink)
        failures = list_parts(self.sink, FAILURES)
        self.report.parts = len(parts)
        with ThreadPoolExecutor(MERGERS, thread_name_prefix="merge") as pool:
            merged = pool.map(self._merge_part, [p.key for p in parts])
            for done, _ in enumerate(merged, 1):
                self.observer.merging(done, len(parts))
            list(pool.map(self._move_failures, [p.key for p in failures]))
        if not self.stop():
            self.staging.clear()

    def _merge_part(self, part_key: str) -> None:
        staged = self.staging.read(part_key)
        self._change(part_key, lambda table: put_into(table, staged, self.addition))

    def _move_failures(self, part_key: str) -> None:
        self._change(part_key, lambda table: with_recipe(table, self.addition))

    def _change(self, part_key: str, how: Callable[[pa.Table], pa.Table | None]) -> None:
        """Change a part by compare-and-swap."""

        def change(data: bytes | None) -> bytes | None:
            table = None if data is None else how(read_part(part_key, data))
            return None if table is None else to_parquet(table)

        if not self.stop():
            update(self.sink, part_key, change)

    def _nothing(self) -> DatasetError:
        report = self.report
        counts = ", ".join(f"{count:,} {why}" for why, count in report.lost.items())
        name, reason = next(iter(report.reasons.items()))
        return DatasetError(
            f"no row of {report.sink} could be given tokens ({counts}), so nothing was changed; "
            f"{name}: {reason}. The recordings were looked for in {self.maker.source.url}; "
            "--source says where they are"
        )
