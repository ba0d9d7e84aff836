"""``enqueue``, ``work`` and ``dead-letters`` as users call them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from speechmill.cli.app import app
from speechmill.queues.options import WorkOptions
from tests.support.brokers import RabbitMQ, Tansu
from tests.support.harness import Command, Place, corpus, ended, fill_folder
from tests.support.queue_work import wait_until

FAKE = ("--transcriber", "fake")


def test_every_option_of_a_worker_is_a_flag() -> None:
    shown = CliRunner().invoke(app, ["work", "--help"], env={"COLUMNS": "300"}).output
    for name in WorkOptions.model_fields:
        if name != "queue":
            assert f"--{name.replace('_', '-')}" in shown, name
    assert "--model" in shown
    assert "--shard-index" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["work", "redis://h/q", "out", *FAKE], 2, "is no queue that Speechmill knows"),
        (["work", "memory://m/q"], 2, "sink: is missing"),
        (["work", "memory://m/q", "out", "--metrics", "none", *FAKE], 2, "give --source"),
        (["work"], 2, "queue: is missing"),
        (["enqueue", "source"], 2, "queue: is missing"),
        (["work", "memory://m/q", "out", "--broker-option", "x"], 2, "write NAME=VALUE"),
        (["work", "memory://m/q", "out", "--linger-s", "-1"], 2, "linger_s"),
        (["work", "kafka://127.0.0.1:9/t", "out", "--metrics", "none", *FAKE], 1, "127.0.0.1:9/t"),
        (["work", "amqp://127.0.0.1:9/q", "out", "--metrics", "none", *FAKE], 1, "127.0.0.1:9/q"),
        (["enqueue", "nowhere", "memory://m/q"], 1, "nowhere"),
        (["dead-letters", "list", "amqp://me:secret@127.0.0.1:9/q"], 1, "cannot be reached"),
        (["dead-letters", "retry", "kafka://127.0.0.1:9/a/b"], 2, "too many parts"),
    ],
)
def test_errors_are_one_message_without_traceback_or_secret(
    arguments: list[str], code: int, said: str
) -> None:
    finished = Command(*arguments).finish()
    assert finished.code == code, finished.err
    assert said in " ".join(finished.err.split())
    assert "Traceback" not in finished.err
    assert "secret" not in finished.err


def test_a_job_file_says_it_all(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "source", corpus(1, 2))
    path = tmp_path / "job.toml"
    path.write_text(
        f'queue = "memory://file/q"\nsource = "{source.url}"\nsink = "{tmp_path}/sink"\n'
        'transcriber = "fake"\nlinger_s = 1\nuntil_empty = true\nmetrics = "none"\n'
        "[broker_option]\n"
    )
    finished = Command("work", "--config", str(path)).finish()
    assert (finished.code, finished.err.count("taking recordings from")) == (0, 1)
    path.write_text(path.read_text().replace("linger_s", "lingers"))
    finished = Command("work", "--config", str(path)).finish()
    assert finished.code == 2
    assert "lingers: there is no such key" in finished.err


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_commits_and_gives_the_rest_back(
    a_broker: Tansu | RabbitMQ, tmp_path: Path
) -> None:
    files = corpus(3, 8)
    source = fill_folder(tmp_path / "source", files)
    sink = Place(str(tmp_path / "sink"))
    url = a_broker.url("stopped")
    told = ("--sink", sink.url, "--part-minutes", "0.02")
    enqueued = Command("enqueue", source.url, url, *told).finish()
    assert enqueued.code == 0
    assert "published     24 messages" in enqueued.out
    slow = (*FAKE, "--model", "fake:0.3", "--part-minutes", "0.02", "--metrics", "none")
    options = (*slow, "--source", source.url)
    worker = Command("work", url, sink.url, *options, "--batch-size", "1")
    with ended(worker):
        wait_until(lambda: Path(sink.url, "data").is_dir(), "rows", 60)
        worker.signal(15)
        finished = worker.finish(40)
    assert finished.code == 128 + 15
    assert "Traceback" not in finished.err
    assert 0 < len(sink.names()) < len(files)
    rest = Command("work", url, sink.url, *options, "--until-empty").finish()
    assert rest.code == 0, rest.err
    assert sink.names() == sorted(files)
    assert "dead letters   0" in rest.out


@pytest.mark.slow
def test_a_long_batch_is_not_taken_from_a_worker_that_is_at_it(
    a_broker: Tansu | RabbitMQ, tmp_path: Path
) -> None:
    """Whoever is silent for longer than that is taken for dead, and its messages come again."""
    source = fill_folder(tmp_path / "source", corpus(1, 1))
    options, batch_s = ["session.timeout.ms=6000", "max.poll.interval.ms=6000"], 9
    if isinstance(a_broker, RabbitMQ):
        options, batch_s = ["heartbeat=2"], 6
    settings = [word for option in options for word in ("--broker-option", option)]
    url = a_broker.url("long")
    assert Command("enqueue", source.url, url).finish().code == 0
    places = (url, str(tmp_path / "sink"), "--source", source.url)
    told = (*places, *FAKE, "--until-empty", "--metrics", "none")
    finished = Command("work", *told, *settings, "--model", f"fake:{batch_s}").finish()
    assert finished.code == 0, finished.err
    assert "messages       1 in 1 batches" in finished.out
    assert "rows           1" in finished.out
