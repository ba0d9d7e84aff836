"""What a worker is told besides the job: its queue, its batches, when it ends."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import Field, field_validator

from speechmill.job import Options, WorkerOptions, parse_options

__all__ = ["WorkOptions"]

EXAMPLE = "security.protocol=SASL_SSL"
SETTING = re.compile(r"[A-Za-z0-9._-]{1,100}")  # no other name is shown: a password may be in it


class WorkOptions(Options):
    """How a worker takes its work. Every field is a flag of ``speechmill work`` and a key of its
    job file. Wrong values raise ``JobError``."""

    panel: ClassVar[str] = "Queue"

    queue: str = Field(description="The queue: kafka://host:9092/TOPIC or amqp://host:5672/QUEUE.")
    group: str | None = Field(
        None,
        min_length=1,
        description="Workers of one group share a topic of Kafka; on RabbitMQ all of a queue "
        "do [default: one group a sink].",
    )
    broker_option: WorkerOptions = Field(
        default_factory=dict,
        description="A setting of the broker's client, such as security.protocol=SASL_SSL; "
        "env:NAME and file:PATH are read.",
    )
    batch_recordings: int = Field(
        256, ge=1, description="Recordings that are processed and committed together, at most."
    )
    linger_s: float = Field(
        30.0, ge=0, description="How long a batch waits to be filled: longer means fewer rewrites."
    )
    until_empty: bool = Field(
        False, description="End once the queue is empty, instead of waiting for more."
    )
    grace_s: float = Field(
        30.0, ge=0, description="Time to commit what is in hand after SIGTERM; the rest goes back."
    )
    drop_removed: bool = Field(
        False, description="Drop the rows of objects that a store says are removed."
    )
    metrics: str = Field(
        "",
        description="Where metrics and health are served: HOST:PORT, or none "
        "[default: 127.0.0.1:9464, or a free port there].",
    )

    def __init__(self, **values: Any) -> None:  # also in the form of flags, which types forbid
        super().__init__(**values)

    @field_validator("broker_option", mode="before")
    @classmethod
    def _broker_options(cls, value: object) -> object:
        options = parse_options(value, EXAMPLE)
        if isinstance(options, dict) and not all(map(SETTING.fullmatch, map(str, options))):
            raise ValueError(f"one has no setting's name: write NAME=VALUE, such as {EXAMPLE}")
        return options
