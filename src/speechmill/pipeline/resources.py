"""What a process needs for a job, opened once and kept: stores, model, tokenizers, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import pyarrow as pa

from speechmill import audio
from speechmill.dataset.layout import folder_rule
from speechmill.dataset.schema import row_schema, token_column
from speechmill.dataset.state import current_recipe
from speechmill.errors import JobError
from speechmill.job import Job
from speechmill.machine import num_cores
from speechmill.pipeline.pace import Pace
from speechmill.recipe import Recipe
from speechmill.speech.segmentation import SegmentOptions
from speechmill.speech.voice import VoiceOptions, voice_model_digests
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.storage.single import SingleWriter
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Tokenizer
from speechmill.tokenizers.units import EncoderUnits
from speechmill.transcribers import TranscriberOptions, open_transcriber
from speechmill.transcribers.base import Transcriber
from speechmill.transcribers.languages import LANGUAGES, language_code

__all__ = ["Tools", "forget_tools", "open_tools"]

ROWS_VERSION = 2  # bumped by hand when rows of the same transcripts and tokens would differ
ROUND_TRIP_VERSION = 1  # likewise, of round_trip_cer

# So many errors of the engine in a row are not the recordings' fault; fewer, before it has worked.
MODEL_ERRORS = 16
FIRST_MODEL_ERRORS = 3

UTTERANCES = 8  # half of what the model is given first, where the job does not say


@dataclass
class Tools:
    """What a process needs for a job, opened once: stores, model, tokenizers."""

    job: Job
    source: Store
    sink: Store
    transcriber: Transcriber
    tokenizers: tuple[Tokenizer, ...]
    segmenting: SegmentOptions = field(default_factory=SegmentOptions)
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _model_errors: int = MODEL_ERRORS - FIRST_MODEL_ERRORS  # in a row

    def __post_init__(self) -> None:
        """Let units that are heard by the transcriber's model use it, not load it again."""
        for tokenizer in self.tokenizers:
            if isinstance(tokenizer, EncoderUnits):
                tokenizer.attach(self.transcriber)

    def model_worked(self) -> None:
        """The engine can run the model: its errors count from none again."""
        with self._lock:
            self._model_errors = 0

    def model_failed(self) -> bool:
        """Count an error of the engine. Whether it has failed so often that the build must end."""
        with self._lock:
            self._model_errors += 1
            return self._model_errors >= MODEL_ERRORS

    @cached_property
    def pace(self) -> Pace:
        """How many pieces the model is given at a time."""
        return Pace(2 * (self.job.batch_size or UTTERANCES))

    # One set of threads for all shards of the process: threads that come and go leave memory that
    # the allocator keeps for each of them.

    @cached_property
    def fetchers(self) -> ThreadPoolExecutor:
        """The threads that fetch."""
        return ThreadPoolExecutor(self.job.fetchers, thread_name_prefix="fetch")

    @cached_property
    def decoders(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        return ThreadPoolExecutor(self.job.threads or num_cores(), thread_name_prefix="decode")

    @cached_property
    def transcribing(self) -> ThreadPoolExecutor:
        """The threads that call the transcriber: two groups of each of two shards."""
        return ThreadPoolExecutor(4, thread_name_prefix="transcribe")

    @cached_property
    def tokenizing(self) -> ThreadPoolExecutor:
        """The threads that tokenize rows while they are transcribed."""
        return ThreadPoolExecutor(self.job.threads or num_cores(), thread_name_prefix="tokenize")

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
                "segmentation": {
                    "mode": self.job.segment,
                    "max_speech_s": self.transcriber.max_speech_s,
                    "options": dict(self.segmenting.recipe),
                    "voice": dict(self.voice.recipe),
                    "voice_model": dict(voice_model_digests()),
                },
                "transcriber": dict(self.transcriber.recipe),
                "tokenizers": {
                    token_column(i, t.name): {"name": t.name, **t.recipe}
                    for i, t in enumerate(self.tokenizers)
                },
                **({"round_trip": {"version": ROUND_TRIP_VERSION}} if self.job.round_trip else {}),
            },
            made_by={"transcriber": self.job.transcriber, **self.transcriber.provenance},
        )

    @cached_property
    def language(self) -> str | None:
        """Whisper's code of the language that the job names; None where it names none."""
        try:
            return self.job.language and language_code(self.job.language, LANGUAGES, self.job.model)
        except JobError:  # the transcriber has taken it as it is
            return self.job.language

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        options = self.job.tokenizer_option
        choices = [
            (spec, options.get(tokenizer.name, {}))
            for spec, tokenizer in zip(_specs(self.job), self.tokenizers, strict=True)
        ]
        return row_schema(self.tokenizers, round_trip=self.job.round_trip, choices=choices)

    @cached_property
    def folder_of(self) -> Callable[[str], str]:
        """The function from a file name to its ``folder_name``."""
        return folder_rule(self.job.folder)

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


def _specs(job: Job) -> list[str]:
    """The job's tokenizers as it names them."""
    return [spec for spec in job.tokenizer if spec != "none"]


@lru_cache(maxsize=2)
def _open_transcriber(name: str, model: str, options: TranscriberOptions) -> Transcriber:
    return open_transcriber(name, model, options)


@lru_cache(maxsize=4)
def _open_tools(job_json: str) -> Tools:
    job = Job.model_validate_json(job_json)
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
            open_tokenizer(
                spec, job.tokenizer_option.get(spec.partition(":")[0], {}), device=job.device
            )
            for spec in _specs(job)
        ),
        transcriber=_open_transcriber(
            job.transcriber,
            job.model,
            TranscriberOptions(
                language=job.language,
                languages=job.languages,
                task=job.task,
                window=job.window,
                beam_size=job.beam_size,
                temperature=job.temperature,
                words=job.words,
                initial_prompt=job.initial_prompt,
                hotwords=job.hotwords,
                suppress_numerals=job.suppress_numerals,
                device=job.device,
                compute_type=job.compute_type,
                batch_size=job.batch_size,
                cpu_threads=job.threads,
            ),
        ),
    )
