"""Messages and events that were good ones before, arbitrary JSON and arbitrary bytes: no worker
stops, and the good messages around them become the rows that a build makes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from speechmill.job import Job
from speechmill.queues import open_broker
from speechmill.queues import worker as worker_module
from speechmill.queues.base import Message
from speechmill.queues.dead_letters import read_dead_letters
from speechmill.queues.options import WorkOptions
from speechmill.queues.run import work
from speechmill.storage import StoreOptions
from tests.queues.test_hostile import OURS, R2, good, odd_messages, s3
from tests.queues.test_notices import entry, field, s3_record
from tests.support.chaos import Chaos
from tests.support.corpus import build
from tests.support.harness import Bucket, Place, corpus, fill_folder
from tests.support.mutants import mutant, mutated_json

FILES = corpus(3, 4)
ROUNDS, MANY_ROUNDS = 2, 100_000
A_ROUND, A_LONG_ROUND = 150, 600  # messages
LONGEST_S = 150.0  # of a round
MOST_BYTES = 900_000  # brokers of Kafka take a megabyte
SAME = ["file_name", "source_size", "source_etag", "transcription", "token", "start_s", "end_s"]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=["memory", "tansu", "rabbitmq"])
def queue(request: pytest.FixtureRequest, chaos: Chaos) -> str:
    """What queues' names begin with."""
    if request.param == "memory":
        return "memory://mutants/"
    if not chaos.is_long:
        pytest.skip("for minutes on a real broker: make chaos")
    url: str = request.getfixturevalue(request.param).url("")
    return url


@pytest.fixture
def job(
    chaos: Chaos,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Job:
    """From a folder; in the long form from a bucket, of which events can be."""
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.02)
    fakes: dict[str, Any] = {"transcriber": "fake", "tokenizer": ("fake",)}
    if not chaos.is_long:
        source = fill_folder(tmp_path / "source", FILES)
        return Job(source=source.url, sink=str(tmp_path / "sink"), **fakes)
    bucket = Bucket(request.getfixturevalue("object_store"), tmp_path)
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    source = bucket.fill(f"mutants-{uuid4().hex[:8]}", FILES)
    reach = {"profile": "r2", "endpoint_url": source.endpoint_url}
    return Job(source=source.url, sink=str(tmp_path / "sink"), **reach, **fakes)


def templates(source: str) -> list[Any]:
    """Good messages about the first of the recordings, and events as each store sends them."""
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    key = f"{prefix}/{next(iter(FILES))}"
    sns = {"Type": "Notification", "TopicArn": "arn:…"}
    record = s3_record("ObjectCreated:Put", key, bucket)
    about = {"bucket": {"name": bucket}, "object": {"key": key, "size": 5}}
    return [
        *({**OURS, "source": source, "key": name} for name in list(FILES)[:4]),
        *({**OURS, "source": source, "key": f"new/{i}.wav", "parts": 3} for i in range(2)),
        {"Records": [record, s3_record("s3:ObjectRemoved:Delete", key, bucket)]},
        s3(bucket, key),
        {**sns, "Message": json.dumps({"Records": [record]})},
        {"version": "0", "detail-type": "Object Created", "source": "aws.s3", "detail": about},
        {**R2, "bucket": bucket, "object": {"key": key, "size": 5}},
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": bucket},
    ]


def bad_message(
    draw: Random, known: Sequence[Mapping[str, Any]], odd: Sequence[Message]
) -> Message:
    kind = draw.randrange(8)
    if kind == 0:
        return Message(draw.randbytes(draw.choice((0, 1, 20, 3_000))))
    if kind == 1:
        return draw.choice(odd)
    if kind == 2:  # of a filer
        path = f"/buckets/src/{draw.choice(list(FILES))}"
        body = field(2, entry(path.rpartition("/")[2])) + field(4, b"/buckets/src/p00")
        return Message(mutant(body, draw), path)
    told = draw.choice(known)
    key = draw.choice(("", "", "p00/0", "/buckets/x", "\0", "ü" * 40))
    if kind < 6:
        for _ in range(draw.choice((1, 1, 3))):
            told = mutated_json(told, draw)
        return Message(json.dumps(told).encode(), key)
    return Message(mutant(json.dumps(told).encode(), draw, [one.body for one in odd]), key)


def rows_of(sink: str) -> pa.Table:
    return Place(sink).dataset_rows().select(SAME)


def test_good_messages_among_bad_ones_become_rows_and_no_worker_stops(
    job: Job, queue: str, chaos: Chaos, tmp_path: Path
) -> None:
    built = job.model_copy(update={"sink": str(tmp_path / "built")})
    build(**{name: getattr(built, name) for name in ("source", "sink", "profile", "endpoint_url")})
    expected = rows_of(built.sink)
    assert expected["file_name"].to_pylist() == sorted(FILES)
    store = StoreOptions(job.profile, job.endpoint_url)
    known, odd = templates(job.source), odd_messages(job.source)
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("messages", number)
        many = chaos.choose(A_ROUND, A_LONG_ROUND)
        drawn = [bad_message(draw, known, odd) for _ in range(many)]
        bad = [replace(one, body=one.body[:MOST_BYTES]) for one in drawn]
        one = job.model_copy(update={"sink": str(tmp_path / f"sink-{number}")})
        url = f"{queue}mutants-{uuid4().hex[:8]}"
        broker = open_broker(url)
        broker.prepare(1)
        messages = good(one, store)
        for some in (messages[:6], bad, messages[6:]):
            broker.publish(some)
        latest = time.monotonic() + LONGEST_S
        report = work(
            one,
            WorkOptions(queue=url, until_empty=True, metrics="none"),
            stop=lambda latest=latest: time.monotonic() > latest,  # type: ignore[misc]
        )
        assert not report.stopped, f"round {number} did not come to its end"
        assert report.messages >= len(bad) + len(messages)
        found = rows_of(one.sink)
        assert found["file_name"].to_pylist() == expected["file_name"].to_pylist(), number
        assert [n for n in SAME if not found[n].equals(expected[n])] == [], number
        letters = read_dead_letters(broker)
        assert len(bad) // 3 < len(letters) <= report.dead_letters
        assert all(letter.reason and letter.error for letter in letters)
        broker.close()
        chaos.count("messages", len(bad))
        chaos.count("dead letters", len(letters))
        chaos.count("good rows", len(FILES))
