"""A job: everything that one build is told, and the recipe of the rows it makes."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from speechmill.errors import JobError

__all__ = [
    "Job",
    "WorkerOptions",
    "explain",
    "load_job",
    "parse_options",
    "parse_tokenizer_options",
    "read_job_file",
]


def _by_tokenizer(value: object) -> object:
    """The flag's form, NAME.OPTION=VALUE, is taken, too."""
    if not isinstance(value, list):
        return value
    options: dict[str, dict[str, Any]] = {}
    for text in value:
        path, equals, setting = str(text).partition("=")
        tokenizer, dot, key = path.partition(".")
        if not (equals and dot and tokenizer and key):
            raise ValueError(f"{text!r}: write NAME.OPTION=VALUE, such as mfcc.n_mfcc=13")
        options.setdefault(tokenizer, {})[key] = _parsed(setting)
    return options


TokenizerOptions = Annotated[
    dict[str, dict[str, bool | int | float | str]], BeforeValidator(_by_tokenizer)
]
WorkerOptions = dict[str, int | float | str]


class Job(BaseModel):
    """One build, validated and frozen.

    Every field is a flag of ``speechmill build`` and a key of the job file, of the same name
    (with ``-`` for ``_`` in flags). Wrong values raise ``JobError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Annotated[str, Field(description="Where the recordings are: s3://…, a folder, …")]
    sink: Annotated[str, Field(description="Where the dataset goes: s3://…, a folder, …")]

    # Storage
    profile: Annotated[
        str | None, Field(description="Profile of ~/.aws to read credentials from, such as r2.")
    ] = None
    endpoint_url: Annotated[
        str | None, Field(description="The object store's endpoint, where it is not AWS.")
    ] = None
    region: Annotated[str | None, Field(description="The bucket's region.")] = None
    sink_profile: Annotated[
        str | None, Field(description="Profile of the sink, where it differs from the source's.")
    ] = None
    sink_endpoint_url: Annotated[
        str | None, Field(description="Endpoint of the sink, where it differs from the source's.")
    ] = None
    sink_region: Annotated[
        str | None, Field(description="Region of the sink, where it differs from the source's.")
    ] = None
    store_retry_s: Annotated[
        float,
        Field(ge=0, description="How long a failing request to the store is tried again, seconds."),
    ] = 60.0
    single_writer: Annotated[
        bool,
        Field(
            description="Vouch that nothing else writes to the sink: "
            "allows stores without conditional puts."
        ),
    ] = False

    # Which recordings
    extension: Annotated[
        tuple[str, ...],
        Field(description="Choose recordings by extension [default: every format we decode]."),
    ] = ()
    include: Annotated[
        tuple[str, ...],
        Field(
            description="Choose only paths that match this glob ('*' also matches '/'), or this "
            "folder, such as 'p2*' or p225."
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...], Field(description="Leave out paths that match this glob or folder.")
    ] = ()
    limit: Annotated[
        int | None, Field(ge=1, description="Take at most so many recordings that are to be done.")
    ] = None
    folder: Annotated[
        str,
        Field(
            description="What folder_name is: parent, first, path, or a regular expression "
            "over the path whose first group it is."
        ),
    ] = "parent"
    partition_by: Annotated[
        str,
        Field(
            description="What the part files are sorted by: folder; none; or hash:N, N groups of "
            "folders. For corpora of very many small folders."
        ),
    ] = "folder"
    keep_damaged: Annotated[
        bool,
        Field(
            description="Make rows of what can be decoded of truncated and damaged recordings, "
            "flagged, instead of failures."
        ),
    ] = False

    # Transcription
    transcriber: Annotated[
        str,
        Field(description="Transcription backend: whisper, openai-whisper, transformers or fake."),
    ] = "whisper"
    model: Annotated[
        str,
        Field(description="Whisper model: tiny … large-v3, turbo, a folder or a hub id."),
    ] = "base"
    language: Annotated[
        str | None,
        Field(description="Language spoken, such as en [default: detected per recording]."),
    ] = None
    languages: Annotated[
        tuple[str, ...],
        Field(description="Allow detection of these languages only; may be given several times."),
    ] = ()
    task: Annotated[
        Literal["transcribe", "translate"],
        Field(description="transcribe, or translate to English."),
    ] = "transcribe"
    segment: Annotated[
        Literal["auto", "vad", "none"],
        Field(
            description="Rows of a recording: vad cuts it at silences into utterances of up to "
            "30 s, none keeps it whole, auto cuts what is longer than 30 s."
        ),
    ] = "auto"
    window: Annotated[
        Literal["adaptive", "full"],
        Field(
            description="Audio that Whisper computes: adaptive is as long as the speech needs, "
            "full is always 30 s."
        ),
    ] = "adaptive"
    beam_size: Annotated[int, Field(ge=1, description="Beams of the decoder; 1 is greedy.")] = 5
    temperature: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2)], ...],
        Field(
            min_length=1,
            description="Sampling temperatures, tried in turn until the text is sure enough.",
        ),
    ] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    words: Annotated[
        bool, Field(description="Give each word its times and probability, in the column words.")
    ] = False
    initial_prompt: Annotated[
        str | None,
        Field(description="Text that each recording is to continue: it sets style and spelling."),
    ] = None
    hotwords: Annotated[
        str | None, Field(description="Names and terms that are likely to be spoken.")
    ] = None
    suppress_numerals: Annotated[
        bool, Field(description="Spell numbers out: 'six', never '6'.")
    ] = False
    device: Annotated[str, Field(description="Where the model runs: auto, cpu or cuda.")] = "auto"
    compute_type: Annotated[
        str,
        Field(description="Number format of the model: auto, int8, float16, float32, …"),
    ] = "auto"

    # Tokens
    tokenizer: Annotated[
        tuple[str, ...],
        Field(description="Audio tokens to make: mfcc or none; may be given several times."),
    ] = ("mfcc",)
    tokenizer_option: Annotated[
        TokenizerOptions,
        Field(description="A tokenizer's option, such as mfcc.n_mfcc=13."),
    ] = {}
    round_trip: Annotated[
        bool,
        Field(
            description="Decode the tokens, transcribe what is heard, and store how far the text "
            "is off, in the column round_trip_cer."
        ),
    ] = False

    # The run
    part_minutes: Annotated[
        float,
        Field(gt=0, description="About how many minutes of audio a part file holds."),
    ] = 30.0
    batch_size: Annotated[
        int,
        Field(
            ge=0,
            description="Utterances that the model computes at once; 0 chooses by the device and "
            "its memory.",
        ),
    ] = 0
    fetchers: Annotated[
        int, Field(ge=1, description="Recordings that are fetched at the same time.")
    ] = 16
    threads: Annotated[
        int, Field(ge=0, description="Processor threads of the model; 0 is one a core.")
    ] = 0
    engine: Annotated[
        Literal["local", "dask", "ray", "spark"],
        Field(description="What runs the shards: local, dask, ray or spark."),
    ] = "local"
    address: Annotated[
        str | None,
        Field(
            description="A cluster that runs: tcp://scheduler:8786, ray://head:10001, spark://…, "
            "or auto [default: one of --workers processes on this machine]."
        ),
    ] = None
    workers: Annotated[
        int,
        Field(
            ge=0,
            description="Worker processes here (0: one a core), or of a cluster at most (0: all).",
        ),
    ] = 0
    worker_option: Annotated[
        WorkerOptions,
        Field(description="What a worker takes of its engine, such as num_gpus=1 (Ray)."),
    ] = {}
    shard_index: Annotated[
        int, Field(ge=0, description="Which of --shard-count builds of the same job this is.")
    ] = 0
    shard_count: Annotated[
        int,
        Field(ge=1, description="Builds that share the parts among them, as a Kubernetes Job's."),
    ] = 1
    max_attempts: Annotated[
        int,
        Field(
            ge=1, description="Workers that may die of a shard before it is set aside as failures."
        ),
    ] = 3
    rebuild: Annotated[
        bool, Field(description="Replace rows that were made by another recipe.")
    ] = False
    retry_failed: Annotated[
        bool, Field(description="Try again what could not be decoded before.")
    ] = False
    prune: Annotated[
        bool, Field(description="Remove rows of recordings that are gone from the source.")
    ] = False
    source_moved: Annotated[
        bool, Field(description="The sink's source has moved: this is its new place.")
    ] = False

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise JobError(explain(error, type(self))) from None

    @field_validator("extension", "include", "exclude", "tokenizer", "languages", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("temperature", mode="before")
    @classmethod
    def _ladder(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (value,)
        if not isinstance(value, list | tuple):
            return value
        try:
            return tuple(float(t) for t in value)
        except (TypeError, ValueError):
            raise ValueError(f"{value!r}: give numbers, such as 0 or 0.2") from None

    @field_validator("worker_option", mode="before")
    @classmethod
    def _worker_options(cls, value: object) -> object:
        return parse_options(value, "num_gpus=1")

    @field_validator("source", "sink", "model", "folder")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("extension")
    @classmethod
    def _bare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(e.lower().lstrip(".") for e in value)

    @field_validator("tokenizer")
    @classmethod
    def _no_tokenizer(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [spec.partition(":")[0] for spec in value]
        if "none" in names and len(names) > 1:
            raise ValueError("'none' stands alone")
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"{min(twice)!r} is given twice")
        return value

    @field_validator("partition_by")
    @classmethod
    def _partition_rule(cls, value: str) -> str:
        if not re.fullmatch(r"folder|none|hash:[1-9]\d{0,5}", value):
            raise ValueError(f"must be folder, none, or hash:N such as hash:64, not {value!r}")
        return value

    @model_validator(mode="after")
    def _shard_of_count(self) -> Self:
        if self.shard_index >= self.shard_count:
            raise ValueError(
                f"shard_index counts from 0: it must be below shard_count ({self.shard_count}), "
                f"not {self.shard_index}"
            )
        return self

    @field_validator("folder")
    @classmethod
    def _folder_rule(cls, value: str) -> str:
        if value not in ("parent", "first", "path"):
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
            if groups < 1:
                raise ValueError(
                    "must be parent, first, path, or a regular expression with a group, "
                    f"such as '^([^/]+)/'; {value!r} has no group"
                )
        return value


def parse_tokenizer_options(given: list[str]) -> TokenizerOptions:
    """Options by tokenizer and name, of what was given as NAME.OPTION=VALUE.

    Raises:
        JobError: one of them is written in another way, or has no plain value.
    """
    named = TypeAdapter(dict[str, TokenizerOptions])
    try:
        parsed = named.validate_python({"tokenizer_option": given}, strict=True)
    except ValidationError as error:
        raise JobError(explain(error, Job)) from None
    return parsed["tokenizer_option"]


def parse_options(value: object, example: str) -> object:
    """Options by name. The flag's form, a list of NAME=VALUE, is taken, too.

    Raises:
        ValueError: one of them has no name or no value; ``example`` shows how to write it.
    """
    if not isinstance(value, list):
        return value
    options: dict[str, Any] = {}
    for text in value:
        name, equals, setting = str(text).partition("=")
        if not (equals and name):
            raise ValueError(f"{text!r}: write NAME=VALUE, such as {example}")
        options[name] = _parsed(setting)
    return options


def _parsed(setting: str) -> Any:
    """What a flag's VALUE means as TOML; else it is text."""
    try:
        return tomllib.loads(f"value = {setting}")["value"]
    except tomllib.TOMLDecodeError:
        return setting


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's findings on a model's values as one line each."""
    lines, seen = [], set()
    for found in error.errors():
        if found["loc"] and found["loc"][0] in seen:
            continue  # what follows from the first
        seen.add(next(iter(found["loc"]), None))
        key = ".".join(str(part) for part in found["loc"][:3]) or "job"
        text = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, model.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            text = f"there is no such key{hint}"
        elif found["type"] == "missing":
            text = "is missing: give it as an argument, or as a key of the job file"
        elif found["type"] != "value_error":
            text = f"{text} (it is {found['input']!r})"
        lines.append(f"{key}: {text}")
    return "\n".join(lines)


def load_job(path: Path | None, overrides: Mapping[str, Any]) -> Job:
    """The job of a TOML file, with ``overrides`` (the flags that were given) on top.

    Raises:
        JobError: the file cannot be read, is no TOML, or a value is wrong.
    """
    return Job(**{**read_job_file(path), **overrides})


def read_job_file(path: Path | None) -> dict[str, Any]:
    """What a job file says; nothing where there is none.

    Raises:
        JobError: the file cannot be read, or is no TOML.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"the job file {path} is no valid TOML: {error}") from None
