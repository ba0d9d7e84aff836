"""What a process needs for a job, opened once and kept: stores, model, tokenizers, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import pyarrow as pa

from speechmill.dataset.layout import folder_rule
from speechmill.dataset.measured import with_measure
from speechmill.dataset.schema import row_schema
from speechmill.dataset.state import current_recipe
from speechmill.errors import JobError
from speechmill.job import Job, StoresOptions
from speechmill.machine import num_cores
from speechmill.measures import open_measures
from speechmill.measures.base import Measure
from speechmill.measures.columns import columns_of
from speechmill.pipeline.isolate import Breaker
from speechmill.pipeline.pace import Pace
from speechmill.pipeline.row_recipe import row_recipe
from speechmill.recipe import Recipe
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.storage.single import SingleWriter
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Tokenizer
from speechmill.tokenizers.columns import column_of
from speechmill.transcribers import TranscriberOptions, open_transcriber
from speechmill.transcribers.base import Transcriber
from speechmill.transcribers.languages import LANGUAGES, language_code

__all__ = [
    "Resources",
    "forget_resources",
    "open_resources",
    "open_sink",
    "open_source",
    "open_stores",
]

FIRST_BATCH: Final = 8
"""Utterances that the model is taken to compute at once before its pace is known, where the job
does not say."""


class Threads:
    """The threads of a job, one set for all shards of the process: threads that come and go leave
    memory that the allocator keeps for each of them."""

    def __init__(self, job: Job) -> None:
        def pool(most: int, name: str) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(most, thread_name_prefix=name)

        cores = job.threads or num_cores()
        self.fetching = pool(job.fetchers, "fetch")
        self.decoding = pool(cores, "decode")
        self.transcribing = pool(4, "transcribe")  # two groups of each of two shards
        self.tokenizing = pool(cores, "tokenize")
        self.committing = pool(2, "commit")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process needs for a job.

    ``schema`` are the columns of the rows, ``recipe`` is what shapes their values. ``folder_of``
    gives a file name its ``folder_name``. ``language`` is Whisper's code of the language that the
    job names; None where it names none. ``pace`` says how many pieces the model is given at a time,
    and ``breaker`` counts the engine's errors.
    """

    job: Job
    source: Store
    sink: Store
    transcriber: Transcriber
    tokenizers: tuple[Tokenizer, ...]
    measures: tuple[Measure, ...]
    recipe: Recipe
    schema: pa.Schema
    language: str | None
    folder_of: Callable[[str], str]
    pace: Pace
    threads: Threads
    breaker: Breaker = field(default_factory=Breaker)

    def is_current(self) -> bool:
        """Whether this recipe is the one that the sink's rows are to have."""
        return current_recipe(self.sink) == self.recipe.id


_opening: Final = threading.Lock()
"""Held while resources are opened, so that two shards that begin together share one set."""


def open_resources(job: Job) -> Resources:
    """The resources of a job; those of the last few stay open until ``forget_resources``.

    Raises:
        JobError: a name or an option of the transcriber or a tokenizer is wrong.
        ModelError: weights cannot be found.
        StorageError: a store cannot be opened.
    """
    with _opening:
        return _open_resources(job.model_dump_json())


def forget_resources() -> None:
    """Open stores anew from now on, with the credentials that there are then. Models stay."""
    with _opening:
        _open_resources.cache_clear()


@dataclass(frozen=True, slots=True)
class _Models:
    """What a job's rows are made with."""

    transcriber: Transcriber
    tokenizers: tuple[Tokenizer, ...]
    measures: tuple[Measure, ...]
    schema: pa.Schema
    recipe: Recipe


def _open_models(job: Job) -> _Models:
    specs = [spec for spec in job.tokenizer if spec != "none"]
    told = [job.tokenizer_option.get(spec.partition(":")[0], {}) for spec in specs]
    tokenizers = tuple(
        open_tokenizer(spec, options, device=job.device)
        for spec, options in zip(specs, told, strict=True)
    )
    transcriber = _open_transcriber(job.transcriber, job.model, TranscriberOptions.of(job))
    measures = open_measures(job.measure)
    schema = row_schema(list(map(column_of, tokenizers, specs, told)), round_trip=job.round_trip)
    for measure in measures:
        schema = with_measure(schema, columns_of(measure))
    recipe = row_recipe(job, transcriber, tokenizers)
    return _Models(transcriber, tokenizers, measures, schema, recipe)


_open_transcriber: Final = lru_cache(maxsize=2)(open_transcriber)


@lru_cache(maxsize=4)
def _open_resources(job_json: str) -> Resources:
    job = Job.model_validate_json(job_json)
    source, sink = open_stores(job)
    models = _open_models(job)
    return Resources(
        job=job,
        source=source,
        sink=sink,
        transcriber=models.transcriber,
        tokenizers=models.tokenizers,
        measures=models.measures,
        recipe=models.recipe,
        schema=models.schema,
        language=_language(job),
        folder_of=folder_rule(job.folder),
        pace=Pace(2 * (job.batch_size or FIRST_BATCH)),
        threads=Threads(job),
    )


def open_stores(job: StoresOptions) -> tuple[Store, Store]:
    """Open the source and the sink.

    Raises:
        StorageError: one of them cannot be opened.
    """
    source, sink = open_source(job), open_sink(job)
    return source, SingleWriter(sink) if job.single_writer else sink


def open_source(job: StoresOptions) -> Store:
    """Open the source alone; raises as ``open_stores``."""
    return open_store(
        job.source,
        StoreOptions(
            job.profile,
            job.endpoint_url,
            job.region,
            job.store_retry_s,
            job.anonymous,
            job.request_payer,
        ),
    )


def open_sink(job: StoresOptions) -> Store:
    """Open the sink alone, as one that others write to, too; raises as ``open_stores``."""
    return open_store(
        job.sink,
        StoreOptions(
            job.sink_profile or job.profile,
            job.sink_endpoint_url or job.endpoint_url,
            job.sink_region or job.region,
            job.store_retry_s,
        ),
    )


def _language(job: Job) -> str | None:
    try:
        return job.language and language_code(job.language, LANGUAGES, job.model)
    except JobError:  # the transcriber has taken it as it is
        return job.language
