"""The commands ``enqueue``, ``work`` and ``dead-letters``: a dataset that is fed by a queue."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from speechmill.cli.console import err, out, print_fields
from speechmill.cli.exits import leave, resumable
from speechmill.cli.options import described, with_config
from speechmill.errors import JobError
from speechmill.job import Job, Options, read_job_file
from speechmill.queues.options import WorkOptions

if TYPE_CHECKING:
    from speechmill.queues.base import Broker

__all__ = ["dead_letters_app", "enqueue", "work"]

# Of a build, not of a worker: it has no plan, and no shards.
NOT_OF_WORK = (
    "source", "sink", "limit", "single_writer", "engine", "address", "workers", "worker_option",
    "shard_index", "shard_count", "prune", "retry_failed", "source_moved",
)  # fmt: skip
OF_ENQUEUE = (
    "profile", "endpoint_url", "region", "anonymous", "request_payer", "sink_profile",
    "sink_endpoint_url", "sink_region", "store_retry_s", "extension", "include", "exclude", "limit",
    "folder", "partition_by", "part_minutes", "retry_failed",
)  # fmt: skip

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help=described(WorkOptions, "queue"))]
BrokerOption = Annotated[
    list[str] | None, typer.Option(help=described(WorkOptions, "broker_option"))
]


class _Places(Options):
    """Where things are, as ``enqueue`` and ``work`` have it besides ``Job``."""

    source: str | None = Field(
        None,
        description="Where the recordings are [default: where the sink's are from].",
    )
    sink: str | None = Field(None, description="The dataset: what is done there is left out.")
    partitions: int = Field(
        12,
        description="Partitions of a new topic: so many workers at most share it.",
        json_schema_extra={"panel": "Queue"},
    )


def _enqueue(config: Path | None, given: dict[str, Any]) -> None:
    """Publish the recordings of SOURCE that a dataset lacks, one message each.

    The same command again goes on where it was cut short. Exit codes: 0 all published, 1 could not,
    2 wrong usage, 130 or 143 stopped by a signal.
    """
    from speechmill.cli.views.queues import EnqueueDisplay, print_enqueued
    from speechmill.queues.enqueue import NO_SINK
    from speechmill.queues.enqueue import enqueue as run

    told = {**read_job_file(config), **given}
    queue = {name: told.pop(name) for name in ("queue", "broker_option") if name in told}
    options = WorkOptions(**queue)
    partitions = int(told.pop("partitions", _Places.model_fields["partitions"].default))
    if partitions < 1:
        raise JobError("partitions: must be 1 or more")
    wanted = {k: v for k, v in told.items() if k in (*OF_ENQUEUE, "source", "sink")}
    if unknown := sorted(told.keys() - wanted.keys() - Job.model_fields.keys()):
        raise JobError(f"{unknown[0]}: there is no such key")
    job = Job(**{"sink": NO_SINK, **wanted})
    with (
        closing(_broker(options)) as broker,
        resumable() as stop,
        closing(EnqueueDisplay(err)) as display,
    ):
        report = run(job, broker, partitions=partitions, observer=display, stop=stop)
    print_enqueued(out, report)
    leave(not report.stopped, stop if report.stopped else None)


def _work(config: Path | None, given: dict[str, Any]) -> None:
    """Take recordings from QUEUE as they come, and grow the dataset SINK by them.

    Runs until it is stopped, or with --until-empty until the queue is empty; any number of workers
    may share a queue. A message is acknowledged once its row is committed. Exit codes: 0 all done,
    1 could not go on, 2 wrong usage, 3 some recordings failed or messages are dead letters, 130 or
    143 stopped by a signal.
    """
    from speechmill.cli.views.queues import WorkDisplay, print_worked
    from speechmill.queues.run import OF_SINK
    from speechmill.queues.run import work as run

    told = {**read_job_file(config), **given}
    of_worker = {k: v for k, v in told.items() if k in WorkOptions.model_fields}
    options = WorkOptions(**of_worker)
    job = Job(**{"source": OF_SINK, **{k: v for k, v in told.items() if k not in of_worker}})
    with resumable(grace_s=options.grace_s) as stop, closing(WorkDisplay(err)) as display:
        report = run(job, options, observer=display, stop=stop)
    print_worked(out, report)
    leave(report.complete, stop)


_enqueue.__name__, _work.__name__ = "enqueue", "work"
enqueue = with_config(
    _enqueue,
    [(Job, "source"), (WorkOptions, "queue")],
    [
        (_Places, "sink"),
        *((Job, name) for name in OF_ENQUEUE),
        (WorkOptions, "broker_option"),
        (_Places, "partitions"),
    ],
)
work = with_config(
    _work,
    [(WorkOptions, "queue"), (Job, "sink")],
    [
        *((WorkOptions, name) for name in WorkOptions.model_fields if name != "queue"),
        (_Places, "source"),
        *((Job, name) for name in Job.model_fields if name not in NOT_OF_WORK),
    ],
)


def _broker(options: WorkOptions) -> Broker:
    from speechmill.queues import open_broker

    return open_broker(options.queue, options.broker_option)


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
    from speechmill.queues.dead_letters import read_dead_letters

    with closing(_broker(WorkOptions(queue=queue, broker_option=broker_option or []))) as broker:
        letters = read_dead_letters(broker)
    for letter in letters:
        reason = f"{letter.error}: {letter.reason}" if letter.error else letter.reason
        print_fields(letter.what, letter.stage or "-", reason, str(letter.attempts), letter.time)
    err.print(f"{len(letters)} dead letters" if letters else "no dead letters")


@dead_letters_app.command(
    "retry", epilog="Example: `speechmill dead-letters retry kafka://broker:9092/recordings`"
)
def retry_command(queue: Queue, broker_option: BrokerOption = None) -> None:
    """Publish the dead letters of QUEUE into it again, for another try."""
    from speechmill.queues.dead_letters import retry_dead_letters

    with closing(_broker(WorkOptions(queue=queue, broker_option=broker_option or []))) as broker:
        count, cut = retry_dead_letters(broker)
    err.print(f"{count} messages are in {broker.url} again")
    if cut:
        err.print(
            f"{cut} were too large for a dead letter and stay, cut: their speechmill-origin says "
            "where they lie whole"
        )
