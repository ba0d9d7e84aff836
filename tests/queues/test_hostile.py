"""Messages that nobody meant to send: whatever one is, it stops no worker and costs no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.job import Job
from speechmill.pipeline.planner import make_plan
from speechmill.queues import batch, open_broker
from speechmill.queues import worker as worker_module
from speechmill.queues.base import Message
from speechmill.queues.dead_letters import read_dead_letters, retry_dead_letters
from speechmill.queues.notices import encode
from speechmill.queues.options import WorkOptions
from speechmill.queues.run import work
from speechmill.queues.tally import WorkReport
from speechmill.records import Recording
from speechmill.storage import StoreOptions, open_store
from tests.support.brokers import Tansu
from tests.support.harness import Place, corpus, fill_folder

FILES = corpus(2, 6)
OURS = {"speechmill": 1, "key": "p1/1.flac", "size": 9, "etag": "x", "modified_us": 1}
R2 = {"action": "PutObject", "bucket": {"name": 1}, "object": {"key": "p1/1.flac"}}


def s3(bucket: Any, key: Any) -> dict[str, Any]:
    return {
        "Records": [
            {
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
            }
        ]
    }


@pytest.fixture(params=["memory", "tansu", "rabbitmq"])
def queue(request: pytest.FixtureRequest) -> str:
    name = f"hostile-{uuid4().hex[:8]}"
    if request.param == "memory":
        return f"memory://{name}/recordings"
    url: str = request.getfixturevalue(request.param).url(name)
    return url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return fill_folder(tmp_path_factory.mktemp("hostile") / "source", FILES)


def job_of(source: Place, sink: Path) -> Job:
    return Job(source=source.url, sink=str(sink), transcriber="fake")


def good(job: Job, reach: StoreOptions = StoreOptions()) -> list[Message]:  # noqa: B008
    """What ``enqueue`` would publish; ``reach`` says how the source is reached."""
    made = make_plan(job, open_store(job.source, reach), open_store("memory://none"), "")
    return [
        encode(job.source, recording, part)
        for shard in made.shards
        for part, recordings in shard.parts
        for recording in recordings
    ]


def worked_among(
    job: Job, queue: str, bad: Sequence[Message], settings: Mapping[str, int] = MappingProxyType({})
) -> WorkReport:
    """Good messages before and behind the bad ones, and what a worker makes of them all."""
    broker = open_broker(queue)
    broker.prepare(1)
    messages = good(job)
    for some in (messages[:6], bad, messages[6:]):
        broker.publish(some)
    options = WorkOptions(
        queue=queue, until_empty=True, metrics="none", broker_option=dict(settings)
    )
    report = work(job, options)
    assert report.rows + report.there == len(FILES)
    assert report.messages >= len(messages) + len(bad)
    return report


def ours(source: str, **odd: Any) -> Message:
    return Message(json.dumps({**OURS, "source": source, **odd}).encode())


def odd_messages(source: str) -> list[Message]:
    events = [s3("", "a.wav"), s3("K:S@b", "a.wav"), s3(["b"], "a.wav"), s3("b", "\ud800.wav"), R2]
    return [
        ours(source, size=float("inf")),
        ours(source, parts=float("inf")),
        ours(source, parts=10**30),
        ours(source, modified_us=-(10**30)),
        ours(source, key="p1/\ud800.flac"),
        ours(source, key="p1/\0.flac"),
        ours(source, size=True, etag=None),
        ours(source, etag="\u0101"),
        ours(source, etag="x\r\nHost: y"),
        ours("\ud800"),
        Message(b"[" * 100_000),
        Message(b"odd headers", "\0", {"x-delivery-count": "many", "x-death": "\0", "": "h" * 9}),
        Message(b'{"Type": "Notification", "Message": "' + b"[" * 100_000 + b'"}'),
        *(Message(json.dumps(event).encode()) for event in events),
    ]


def test_odd_messages_are_dead_letters_with_their_reason(
    source: Place, tmp_path: Path, queue: str
) -> None:
    bad = odd_messages(source.url)
    report = worked_among(job_of(source, tmp_path / "sink"), queue, bad)
    assert report.dead_letters == len(bad)
    found = read_dead_letters(open_broker(queue))
    assert all(letter.reason and letter.error for letter in found)


def test_a_message_too_large_for_a_letter_is_cut_with_a_pointer_to_it(
    source: Place, tmp_path: Path, queue: str
) -> None:
    key = "k" * (900_000 if queue.startswith("kafka") else 200)
    bad = [
        Message(b"x" * 999_000),
        Message(b"no JSON", key),
        ours(source.url, key="n" * 900_000),
    ]
    report = worked_among(job_of(source, tmp_path / "sink"), queue, bad)
    assert report.dead_letters == 3
    found = {letter.what[:7]: letter for letter in read_dead_letters(open_broker(queue))}
    assert len(found) == 3
    cut = [letter for letter in found.values() if letter.is_cut]
    assert len(cut) == (3 if queue.startswith("kafka") else 2)
    for letter in cut:
        assert len(letter.message.body) < 400_000
        assert letter.origin.startswith(queue.rpartition("/")[2])
    assert retry_dead_letters(open_broker(queue)) == (3 - len(cut), len(cut))


def test_a_letter_is_cut_to_what_the_client_may_send(
    source: Place, tmp_path: Path, tansu: Tansu
) -> None:
    queue = tansu.url(f"small-{uuid4().hex[:8]}")
    job = job_of(source, tmp_path / "sink")
    bad = [Message(b"x" * 50_000), Message(b"no JSON")]
    report = worked_among(job, queue, bad, {"message.max.bytes": 20_000})
    assert report.dead_letters == 2
    letters = read_dead_letters(open_broker(queue))
    assert sorted(letter.is_cut for letter in letters) == [False, True]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["\ud800", "../x", "s3://b/x", "memory://x", "/etc/passwd", "ObjectCreated:"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(*OURS, "source", "parts", "Records", "s3", "bucket", "object", "name"),
                    *("eventName", "action", "detail-type", "detail", "Type", "Message"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
messages = st.binary(max_size=200) | json_values.map(lambda told: json.dumps(told).encode())


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bodies=st.lists(messages, min_size=10, max_size=40), key=st.text(max_size=8))
def test_arbitrary_bytes_and_json_stop_no_worker(
    source: Place, tmp_path: Path, queue: str, bodies: list[bytes], key: str
) -> None:
    job = job_of(source, tmp_path / uuid4().hex)
    key = key.encode("utf-8", "replace").decode()
    worked_among(job, queue, [Message(body, key) for body in bodies])


def test_what_our_own_code_raises_is_a_dead_letter_of_the_message_that_makes_it(
    source: Place, tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = batch.BatchProcessor._to_process

    def rough(self: Any, part: Any, recording: Recording, known: Any) -> Recording | None:
        if recording.size == 77:
            raise ZeroDivisionError("nobody foresaw this")
        return current(self, part, recording, known)

    monkeypatch.setattr(batch.BatchProcessor, "_to_process", rough)
    bad = [ours(source.url, size=77)]
    report = worked_among(job_of(source, tmp_path / "sink"), queue, bad)
    assert report.dead_letters == 1
    (letter,) = read_dead_letters(open_broker(queue))
    assert (letter.what, letter.stage, letter.error) == ("p1/1.flac", "worker", "ZeroDivisionError")
    assert "nobody foresaw this" in letter.reason
