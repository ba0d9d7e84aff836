"""What a process needs for a job, opened once and kept: stores, model, tokenizers, threads."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import pyarrow as pa

from speechmill import audio
from speechmill.dataset.schema import row_schema, token_column
from speechmill.dataset.state import current_recipe
from speechmill.job import Job, Recipe
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.storage.single import SingleWriter
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Tokenizer
from speechmill.transcribers import open_transcriber
from speechmill.transcribers.base import Transcriber

__all__ = ["MODEL_ERRORS", "Tools", "forget_tools", "open_tools"]

ROWS_VERSION = 1  # bumped by hand when rows of the same transcripts and tokens would differ

# So many errors of the engine in a row are not the recordings' fault; fewer, before it has worked.
MODEL_ERRORS = 16
FIRST_MODEL_ERRORS = 3


@dataclass
class Tools:
    """What a process needs for a job, opened once: stores, model, tokenizers."""

    job: Job
    source: Store
    sink: Store
    transcriber: Transcriber
    tokenizers: tuple[Tokenizer, ...]
    model_lock: threading.Lock = field(default_factory=threading.Lock)
    model_errors: int = MODEL_ERRORS - FIRST_MODEL_ERRORS  # in a row, counted under the lock

    # One set of threads for all shards of the process: threads that come and go leave memory that
    # the allocator keeps for each of them.

    @cached_property
    def fetchers(self) -> ThreadPoolExecutor:
        """The threads that fetch."""
        return ThreadPoolExecutor(self.job.fetchers, thread_name_prefix="fetch")

    @cached_property
    def decoders(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    @cached_property
    def tokenizing(self) -> ThreadPoolExecutor:
        """The threads that tokenize a batch while it is transcribed."""
        return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tokenize")

    @cached_property
    def committing(self) -> ThreadPoolExecutor:
        """The threads that commit parts."""
        return ThreadPoolExecutor(2, thread_name_prefix="commit")

    @cached_property
    def recipe(self) -> Recipe:
        """Every choice that shapes the rows."""
        return Recipe(
            {
                "rows": {"version": ROWS_VERSION},
                "audio": {
                    "version": audio.AUDIO_VERSION,
                    "keep_damaged": self.job.keep_damaged,
                },
                "transcriber": dict(self.transcriber.recipe),
                "tokenizers": {
                    token_column(i, t.name): {"name": t.name, **t.recipe}
                    for i, t in enumerate(self.tokenizers)
                },
            },
            made_by={"transcriber": self.job.transcriber, **self.transcriber.provenance},
        )

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return row_schema(self.tokenizers)

    def is_current(self) -> bool:
        """Whether this recipe is the one that the sink's rows are to have."""
        return current_recipe(self.sink) == self.recipe.id


def open_tools(job: Job) -> Tools:
    """The tools of a job; those of the last few jobs stay open until ``forget_tools``.

    Raises:
        JobError: a name or an option of the transcriber or a tokenizer is wrong.
        ModelError: weights cannot be found.
        StorageError: a store cannot be opened.
    """
    return _open_tools(job.model_dump_json())


def forget_tools() -> None:
    """Open stores anew from now on, with the credentials that there are then. Models stay."""
    _open_tools.cache_clear()


@lru_cache(maxsize=2)
def _open_transcriber(job_json: str) -> Transcriber:
    return open_transcriber(**json.loads(job_json))


@lru_cache(maxsize=4)
def _open_tools(job_json: str) -> Tools:
    job = Job.model_validate_json(job_json)
    names = [spec for spec in job.tokenizer if spec != "none"]
    options = StoreOptions(job.profile, job.endpoint_url, job.region, job.store_retry_s)
    sink_options = StoreOptions(
        job.sink_profile or job.profile,
        job.sink_endpoint_url or job.endpoint_url,
        job.sink_region or job.region,
        job.store_retry_s,
    )
    sink = open_store(job.sink, sink_options)
    return Tools(
        job=job,
        source=open_store(job.source, options),
        sink=SingleWriter(sink) if job.single_writer else sink,
        tokenizers=tuple(
            open_tokenizer(spec, job.tokenizer_option.get(spec.partition(":")[0], {}))
            for spec in names
        ),
        transcriber=_open_transcriber(
            json.dumps(
                {
                    "name": job.transcriber,
                    "model": job.model,
                    "language": job.language,
                    "device": job.device,
                    "compute_type": job.compute_type,
                    "beam_size": job.beam_size,
                    "cpu_threads": job.threads,
                }
            )
        ),
    )
