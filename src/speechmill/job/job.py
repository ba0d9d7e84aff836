"""A job: everything that one build is told."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from speechmill.errors import JobError
from speechmill.job.options import Name, Options, Texts, parse_options, parsed
from speechmill.job.recordings import RecordingOptions
from speechmill.job.transcription import (
    ModelOptions,
    SegmentationOptions,
    SpokenOptions,
    TranscriptionOptions,
)

__all__ = [
    "EngineOptions",
    "Job",
    "StoresOptions",
    "WorkerOptions",
    "load_job",
    "parse_tokenizer_options",
    "read_job_file",
]

TokenizerOptions = dict[str, dict[str, bool | int | float | str]]
WorkerOptions = dict[str, int | float | str]


class StoresOptions(Options):
    """Where the source and the sink are, and how they are reached."""

    panel: ClassVar[str] = "Storage"

    source: Name = Field(description="Where the recordings are: s3://…, a folder, …")
    sink: Name = Field(description="Where the dataset goes: s3://…, a folder, …")
    profile: str | None = Field(
        None, description="Profile of ~/.aws to read credentials from, such as r2."
    )
    endpoint_url: str | None = Field(
        None, description="The object store's endpoint, where it is not AWS."
    )
    region: str | None = Field(None, description="The bucket's region.")
    anonymous: bool = Field(
        False,
        description="Read the source without keys, by unsigned requests: for public buckets.",
    )
    request_payer: bool = Field(
        False,
        description="Agree to pay for requests to the source: for buckets whose requester pays.",
    )
    sink_profile: str | None = Field(
        None, description="Profile of the sink, where it differs from the source's."
    )
    sink_endpoint_url: str | None = Field(
        None, description="Endpoint of the sink, where it differs from the source's."
    )
    sink_region: str | None = Field(
        None, description="Region of the sink, where it differs from the source's."
    )
    store_retry_s: float = Field(
        60.0, ge=0, description="How long a failing request to the store is tried again, seconds."
    )
    single_writer: bool = Field(
        False,
        description="Vouch that nothing else writes to the sink: "
        "allows stores without conditional puts.",
    )


class TokenOptions(Options):
    """Which tokens are made."""

    panel: ClassVar[str] = "Tokens"

    tokenizer: Texts = Field(
        ("mfcc",), description="Audio tokens to make: mfcc or none; may be given several times."
    )
    tokenizer_option: TokenizerOptions = Field(
        default_factory=dict, description="A tokenizer's option, such as mfcc.n_mfcc=13."
    )
    round_trip: bool = Field(
        False,
        description="Decode the tokens, transcribe what is heard, and store how far the text "
        "is off, in the column round_trip_cer.",
    )

    @field_validator("tokenizer_option", mode="before")
    @classmethod
    def _options(cls, value: object) -> object:
        """The flag's form, NAME.OPTION=VALUE, is taken, too."""
        if not isinstance(value, list):
            return value
        options: dict[str, dict[str, Any]] = {}
        for text in value:
            path, equals, setting = str(text).partition("=")
            tokenizer, dot, key = path.partition(".")
            if not (equals and dot and tokenizer and key):
                raise ValueError(f"{text!r}: write NAME.OPTION=VALUE, such as mfcc.n_mfcc=13")
            options.setdefault(tokenizer, {})[key] = parsed(setting)
        return options

    @field_validator("tokenizer")
    @classmethod
    def _no_tokenizer(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [spec.partition(":")[0] for spec in value]
        if "none" in names and len(names) > 1:
            raise ValueError("'none' stands alone")
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"{min(twice)!r} is given twice")
        return value


class MeasureOptions(Options):
    """What is measured of each row."""

    panel: ClassVar[str] = "Measures"

    measure: Texts = Field(
        (), description="Measure each row as it is made, such as level; several times for more."
    )


class PaceOptions(Options):
    """How much is done at a time."""

    part_minutes: float = Field(
        30.0, gt=0, description="About how many minutes of audio a part file holds."
    )
    fetchers: int = Field(16, ge=1, description="Recordings that are fetched at the same time.")
    threads: int = Field(0, ge=0, description="Processor threads of the model; 0 is one a core.")


class EngineOptions(Options):
    """What runs the shards."""

    panel: ClassVar[str] = "Engine"

    engine: Literal["local", "dask", "ray", "spark"] = Field(
        "local", description="What runs the shards: local, dask, ray or spark."
    )
    address: str | None = Field(
        None,
        description="A cluster that runs: tcp://scheduler:8786, ray://head:10001, spark://…, "
        "or auto [default: one of --workers processes on this machine].",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Worker processes here (0: one a core), or of a cluster at most (0: all).",
    )
    worker_option: WorkerOptions = Field(
        default_factory=dict,
        description="What a worker takes of its engine, such as num_gpus=1 (Ray).",
    )
    shard_index: int = Field(
        0, ge=0, description="Which of --shard-count builds of the same job this is."
    )
    shard_count: int = Field(
        1, ge=1, description="Builds that share the parts among them, as a Kubernetes Job's."
    )
    max_attempts: int = Field(
        3, ge=1, description="Workers that may die of a shard before it is set aside as failures."
    )

    @field_validator("worker_option", mode="before")
    @classmethod
    def _worker_options(cls, value: object) -> object:
        return parse_options(value, "num_gpus=1")

    @model_validator(mode="after")
    def _shard_of_count(self) -> Self:
        if self.shard_index >= self.shard_count:
            raise ValueError(
                f"shard_index counts from 0: it must be below shard_count ({self.shard_count}), "
                f"not {self.shard_index}"
            )
        return self


# Their order is that of the flags in --help: the last base comes first.
class Job(
    EngineOptions,
    PaceOptions,
    MeasureOptions,
    TokenOptions,
    TranscriptionOptions,
    SegmentationOptions,
    SpokenOptions,
    ModelOptions,
    RecordingOptions,
    StoresOptions,
):
    """One build, validated and frozen: every field is a flag of ``speechmill build``."""

    panel: ClassVar[str] = "The run"

    rebuild: bool = Field(False, description="Replace rows that were made by another recipe.")
    retry_failed: bool = Field(False, description="Try again what could not be decoded before.")
    prune: bool = Field(
        False, description="Remove rows of recordings that are gone from the source."
    )
    source_moved: bool = Field(
        False, description="The sink's source has moved: this is its new place."
    )

    def __init__(self, **values: Any) -> None:  # also in the form of flags, which types forbid
        super().__init__(**values)


def parse_tokenizer_options(given: list[str]) -> TokenizerOptions:
    """Options by tokenizer and name, of what was given as NAME.OPTION=VALUE.

    Raises:
        JobError: one of them is written in another way, or has no plain value.
    """
    return TokenOptions.model_validate({"tokenizer_option": given}).tokenizer_option


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
    except RecursionError:
        raise JobError(
            f"the job file {path} has lists or tables too deep within one another: no option needs "
            "more than two"
        ) from None
