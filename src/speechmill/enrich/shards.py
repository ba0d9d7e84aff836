"""An enrichment in shards, for the workers of an engine: each makes and stages what parts lack."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final

from pydantic import Field

from speechmill.ahead import together
from speechmill.dataset.reader import read_columns
from speechmill.enrich.additions import open_measure_additions, open_token_addition
from speechmill.enrich.audio import decoded_by
from speechmill.enrich.base import Addition
from speechmill.enrich.lookup import GivenUp, LackingPart, columns_to_look_at, lacking_of
from speechmill.enrich.maker import Maker, Outcome
from speechmill.errors import DatasetError, NotFoundError
from speechmill.job import EngineOptions, StoresOptions
from speechmill.job.options import Texts
from speechmill.pipeline.resources import open_stores
from speechmill.recipe import Recipe
from speechmill.records import ShardReport
from speechmill.storage import Object, Store

__all__ = [
    "EnrichedShard",
    "Enrichment",
    "PartsShard",
    "enrich_shard",
    "given_up_of",
    "halves",
    "in_shards",
    "set_aside",
]

SHARD_S: Final = 1800.0
"""Audio of a shard, unless one part lacks more: about what a part holds, so that many workers are
kept busy and none is for long."""


class Enrichment(EngineOptions, StoresOptions):
    """What a worker is told of an enrichment. Of JSON values, and picklable.

    ``recipe`` is the sink's, as ``Recipe.to_json`` writes it. ``stagings`` name what the additions
    make: a worker whose Speechmill, weights or libraries would make something else must not.
    """

    tokenizer: str | None = None
    tokenizer_option: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"
    measures: Texts = ()
    recipe: str = ""
    stagings: Texts = ()


@dataclass(frozen=True, slots=True)
class PartsShard:
    """Parts that a worker is to make something for; ``only`` for these recordings, by file name,
    where some are named."""

    index: int
    parts: tuple[Object, ...]
    only: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Their size in the sink."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class EnrichedShard(ShardReport):
    """What became of a shard's recordings, and the seconds that each addition took.

    ``given_up`` is a shard that kept killing its workers; ``why`` says how.
    """

    outcomes: tuple[Outcome, ...] = ()
    compute_s: tuple[float, ...] = ()
    given_up: PartsShard | None = None
    why: str = ""

    @property
    def got_on(self) -> bool:
        """See ``ShardReport``."""
        return any(outcome.num_rows for outcome in self.outcomes)


def in_shards(parts: Sequence[LackingPart]) -> list[PartsShard]:
    """Share out parts, several small ones together."""
    return [
        PartsShard(index, tuple(one.part for one in some))
        for index, some in enumerate(together(parts, lambda one: one.audio_s, SHARD_S))
    ]


_opening: Final = threading.Lock()


@lru_cache(maxsize=2)
def _open(job_json: str) -> Callable[[], Maker]:
    """What makes a worker's ``Maker``, with all that it needs; opened once and kept."""
    job = Enrichment.model_validate_json(job_json)
    source, sink = open_stores(job)
    recipe = Recipe.from_json(job.recipe)
    additions: list[Addition] = []
    if job.tokenizer is not None:
        options = job.tokenizer_option
        additions.append(open_token_addition(sink, recipe, job.tokenizer, options, job.device))
    additions += open_measure_additions(sink, recipe, job.measures)
    made = tuple(addition.staging.id for addition in additions)
    if made != job.stagings:
        raise DatasetError(
            "a worker would make other values than this command: its Speechmill or its weights are "
            "others than here; make them the same"
        )
    choices = decoded_by(recipe, sink.url)
    return partial(Maker, sink, source, additions, choices=choices)


def enrich_shard(
    job: Enrichment, shard: PartsShard, *, stop: Callable[[], bool] = lambda: False
) -> EnrichedShard:
    """Make what the parts of a shard lack, and stage it. What is staged already is not made again.

    Raises:
        DatasetError: this worker would make other values.
        UnavailableError: a store stays down. What was staged stays.
        SpeechmillError: the job itself cannot be done (model, credentials, dataset).
    """
    with _opening:
        open_maker = _open(job.model_dump_json())
    maker = open_maker()
    outcomes = tuple(maker.make(shard.parts, {}, stop, shard.only))
    return EnrichedShard(
        shard.index,
        mismatch={a.name: a.mismatch for a in maker.additions if a.mismatch},
        outcomes=outcomes,
        compute_s=tuple(maker.compute_s),
    )


def halves(job: Enrichment, shard: PartsShard) -> list[PartsShard]:
    """Two shards that do one together, in the end recording by recording; none where it has only
    one.

    Raises:
        SpeechmillError: the sink cannot be read.
    """
    if len(shard.parts) > 1:
        middle = len(shard.parts) // 2
        some = shard.parts[:middle], shard.parts[middle:]
        return [replace(shard, parts=parts) for parts in some]
    names = shard.only or _names(job, shard.parts[0])
    if len(names) < 2:
        return []
    middle = len(names) // 2
    return [replace(shard, only=only) for only in (names[:middle], names[middle:])]


def _names(job: Enrichment, part: Object) -> tuple[str, ...]:
    """The recordings of a part."""
    _, sink = open_stores(job)
    try:
        table = read_columns(sink, part, ["file_name"])
    except NotFoundError:
        return ()
    return tuple(dict.fromkeys(table["file_name"].to_pylist()))


def set_aside(shard: PartsShard, why: str) -> EnrichedShard:
    """What becomes of a shard that keeps killing its workers."""
    return EnrichedShard(shard.index, given_up=shard, why=why)


def given_up_of(
    sink: Store, done: EnrichedShard, additions: Sequence[Addition], given_up: GivenUp
) -> Iterator[Outcome]:
    """The recordings of a shard that was given up, but for those that are staged or had all."""
    if done.given_up is None:
        return
    staged = [set(addition.staging.keys()) for addition in additions]
    for part in done.given_up.parts:
        try:
            table = read_columns(sink, part, columns_to_look_at(additions))
        except NotFoundError:
            continue
        lacking = lacking_of(part.key, table, additions, staged, given_up)
        lost = Counter(lacking.rows["file_name"].to_pylist())
        for name, count in lost.items():
            if done.given_up.only and name not in done.given_up.only:
                continue
            numbers = (n for n, keys in enumerate(lacking.keys) if any(k[0] == name for k in keys))
            yield Outcome(name, 0.0, 0, count, "failed", done.why, tuple(numbers))
