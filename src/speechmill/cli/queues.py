"""The commands ``enqueue``, ``work`` and ``dead-letters``: a dataset that is fed by a queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from speechmill.cli.options import with_flags
from speechmill.cli.signals import Stop
from speechmill.errors import JobError
from speechmill.job import Job, parse_options, read_job_file
from speechmill.queues.options import WorkOptions

__all__ = [
    "ENQUEUE_EPILOG",
    "WORK_EPILOG",
    "dead_letters_app",
    "enqueue_command",
    "work_command",
]

ENQUEUE_EPILOG = (
    "Example: `speechmill enqueue s3://voices/vctk kafka://broker:9092/recordings "
    "--sink s3://voices/output --profile r2`"
)
WORK_EPILOG = (
    "Example: `speechmill work kafka://broker:9092/recordings s3://voices/output "
    "--group mill --language en --profile r2`"
)
EXIT_SOME_FAILED = 3
ONE_LINE = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})

# Of a build, not of a worker: it has no plan, and no shards.
NOT_OF_WORK = (
    "source", "sink", "limit", "single_writer", "engine", "address", "workers", "worker_option",
    "shard_index", "shard_count", "prune", "retry_failed", "source_moved",
)  # fmt: skip
OF_ENQUEUE = (
    "profile", "endpoint_url", "region", "sink_profile", "sink_endpoint_url", "sink_region",
    "store_retry_s", "extension", "include", "exclude", "limit", "folder", "partition_by",
    "part_minutes", "retry_failed",
)  # fmt: skip

out = Console()
err = Console(stderr=True)

Queue = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE", help="The queue: kafka://host:9092/TOPIC or amqp://host:5672/QUEUE."
    ),
]
BrokerOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A setting of the broker's client, such as security.protocol=SASL_SSL; env:NAME and "
        "file:PATH are read."
    ),
]


class _Places(BaseModel):
    """Where things are, as ``enqueue`` and ``work`` have it besides ``Job``."""

    model_config = ConfigDict(frozen=True)

    source: Annotated[
        str | None,
        Field(
            description="Where the recordings are [default: where the sink's are from, or else "
            "what the messages say]."
        ),
    ] = None
    sink: Annotated[
        str | None, Field(description="The dataset: what is done there is left out.")
    ] = None
    partitions: Annotated[
        int,
        Field(
            description="Partitions of a new topic: so many workers at most share it.",
            json_schema_extra={"panel": "Queue"},
        ),
    ] = 12


def _enqueue(config: Path | None, given: dict[str, Any]) -> None:
    """Publish the recordings of SOURCE that a dataset lacks, one message each.

    The same command again goes on where it was cut short. Exit codes: 0 all published, 1 could not,
    2 wrong usage, 130 or 143 stopped by a signal.
    """
    from speechmill.cli.views.queues import EnqueueDisplay, print_enqueued
    from speechmill.queues import open_broker
    from speechmill.queues.enqueue import NO_SINK
    from speechmill.queues.enqueue import enqueue as run

    told = {**read_job_file(config), **given}
    queue, options = _queue_of(told), told.pop("broker_option", [])
    partitions = int(told.pop("partitions", _Places.model_fields["partitions"].default))
    if partitions < 1:
        raise JobError("partitions: must be 1 or more")
    wanted = {k: v for k, v in told.items() if k in (*OF_ENQUEUE, "source", "sink")}
    if unknown := sorted(told.keys() - wanted.keys() - Job.model_fields.keys()):
        raise JobError(f"{unknown[0]}: there is no such key")
    job = Job(**{"sink": NO_SINK, **wanted})
    broker = open_broker(queue, _broker_options(options))
    stop = Stop(err)
    display = EnqueueDisplay(err)
    try:
        with stop.listening():
            report = run(job, broker, partitions=partitions, observer=display, stop=stop)
    finally:
        display.close()
        broker.close()
    print_enqueued(out, report)
    if report.stopped:
        raise typer.Exit(stop.exit_code)


def _work(config: Path | None, given: dict[str, Any]) -> None:
    """Take recordings from QUEUE as they come, and grow the dataset SINK by them.

    Runs until it is stopped, or with --until-empty until the queue is empty; any number of workers
    may share a queue. A message is acknowledged once its row is committed. Exit codes: 0 all done,
    1 could not go on, 2 wrong usage, 3 some recordings failed or messages are dead letters, 130 or
    143 stopped by a signal.
    """
    from speechmill.cli.views.queues import WorkDisplay, print_worked
    from speechmill.queues.run import ANY_SOURCE
    from speechmill.queues.run import work as run

    told = {**read_job_file(config), **given}
    _queue_of(told, keep=True)
    of_worker = {k: v for k, v in told.items() if k in WorkOptions.model_fields}
    options = WorkOptions(**of_worker)
    job = Job(**{"source": ANY_SOURCE, **{k: v for k, v in told.items() if k not in of_worker}})
    stop = Stop(err, grace_s=options.grace_s)
    display = WorkDisplay(err)
    with stop.listening():
        try:
            report = run(job, options, observer=display, stop=stop)
        finally:
            display.close()
    print_worked(out, report)
    if report.stopped:
        raise typer.Exit(stop.exit_code)
    raise typer.Exit(0 if report.complete else EXIT_SOME_FAILED)


def _queue_of(told: dict[str, Any], *, keep: bool = False) -> str:
    queue = told.get("queue") if keep else told.pop("queue", None)
    if not isinstance(queue, str):
        raise JobError("queue: is missing: give it as an argument, or as a key of the job file")
    return queue


def _broker_options(given: object) -> dict[str, str | int | float]:
    try:
        parsed = parse_options(given or [], "security.protocol=SASL_SSL")
    except ValueError as error:
        raise JobError(f"broker_option: {error}") from None
    if not isinstance(parsed, dict):
        raise JobError("broker_option: must be a table of settings")
    return parsed


_enqueue.__name__, _work.__name__ = "enqueue", "work"
enqueue_command = with_flags(
    _enqueue,
    [(Job, "source"), (WorkOptions, "queue")],
    [
        (_Places, "sink"),
        *((Job, name) for name in OF_ENQUEUE),
        (WorkOptions, "broker_option"),
        (_Places, "partitions"),
    ],
)
work_command = with_flags(
    _work,
    [(WorkOptions, "queue"), (Job, "sink")],
    [
        *((WorkOptions, name) for name in WorkOptions.model_fields if name != "queue"),
        (_Places, "source"),
        *((Job, name) for name in Job.model_fields if name not in NOT_OF_WORK),
    ],
)

dead_letters_app = typer.Typer(
    no_args_is_help=True, help="Messages that nothing could be made of, and why."
)


@dead_letters_app.command(
    "list", epilog="Example: `speechmill dead-letters list kafka://broker:9092/recordings`"
)
def list_command(queue: Queue, broker_option: BrokerOption = None) -> None:
    """List the dead letters of QUEUE: recording or message, stage, reason, attempts, time; by tabs.

    They stay where they are.
    """
    from speechmill.queues import open_broker
    from speechmill.queues.dead_letters import read_dead_letters

    letters = read_dead_letters(open_broker(queue, _broker_options(broker_option)))
    for letter in letters:
        reason = f"{letter.error}: {letter.reason}" if letter.error else letter.reason
        fields = (letter.what, letter.stage or "-", reason, str(letter.attempts), letter.time)
        typer.echo("\t".join(field.translate(ONE_LINE) for field in fields))
    err.print(f"{len(letters)} dead letters" if letters else "no dead letters")


@dead_letters_app.command(
    "retry", epilog="Example: `speechmill dead-letters retry kafka://broker:9092/recordings`"
)
def retry_command(queue: Queue, broker_option: BrokerOption = None) -> None:
    """Publish the dead letters of QUEUE into it again, for another try."""
    from speechmill.queues import open_broker
    from speechmill.queues.dead_letters import retry_dead_letters

    broker = open_broker(queue, _broker_options(broker_option))
    count = retry_dead_letters(broker)
    broker.close()
    err.print(f"{count} messages are in {broker.url} again")
