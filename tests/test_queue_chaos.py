"""Workers that are killed, messages twice and in no order, a store that fails, a broker that goes
away: at the end each recording once, at no moment one twice or gone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechmill.dataset.summary import failed_recordings
from speechmill.job import Job
from speechmill.planner import make_plan
from speechmill.queues import open_broker
from speechmill.queues.notices import encode
from speechmill.storage import open_store
from tests.brokers import RabbitMQ, Tansu
from tests.harness import Bucket, Build, Place, Poller, Watched, assert_same_dataset, corpus
from tests.queue_work import Crew, Letters, poison, publish_mixed, wait_until
from tests.services import SeaweedFS

MESSAGES = int(os.environ.get("SPEECHMILL_QUEUE_MESSAGES", "72"))
KILLING_S = 240.0
FOLDERS = 12
# So long that no folder outgrows its parts: then these are the ones that a build has.
PART_MINUTES = str(0.02 * max(1.0, MESSAGES / 120))
SEED = 7
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(params=["kafka", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Iterator[Tansu | RabbitMQ]:
    with (Tansu if request.param == "kafka" else RabbitMQ)() as running:
        yield running


@pytest.fixture(scope="module")
def bucket(object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(object_store, tmp_path_factory.mktemp("profile"))


@pytest.fixture(autouse=True)
def _profile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)


def test_every_recording_once_whatever_dies(
    server: Tansu | RabbitMQ, bucket: Bucket, tmp_path: Path
) -> None:
    name = type(server).__name__.lower()
    source = bucket.fill(f"queue-{name}", corpus(FOLDERS, MESSAGES // FOLDERS, broken=2))
    expected = bucket.place(f"s3://dst/expected-{name}")
    build = Build(
        source.url,
        expected.url,
        *("--endpoint-url", bucket.server.endpoint_url, "--part-minutes", PART_MINUTES),
    )
    assert build.finish().code == 3
    sink = bucket.place(f"s3://dst/queue-{name}")
    broker = open_broker(server.url("recordings"))
    broker.prepare()
    made = make_plan(
        Job(source=source.url, sink=expected.url, part_minutes=float(PART_MINUTES)),
        source.store,
        open_store("memory://none"),
        "",
    )
    messages = [
        encode(source.url, recording, part)
        for shard in made.shards
        for part, recordings in shard.parts
        for recording in recordings
    ]
    bad = poison(source.url, "nobody/gone.wav")  # it does not say how many parts
    publish_mixed(broker, [*messages, *bad], SEED)
    with Watched(bucket.server.endpoint_url, rate=0.1, seed=SEED) as proxy:
        options = (
            *("--endpoint-url", proxy.endpoint_url, "--transcriber", "fake"),
            *("--model", "fake:0.02", "--part-minutes", PART_MINUTES, "--linger-s", "1"),
        )
        watched = Place(sink.url, bucket.server.endpoint_url, "r2")
        with (
            Poller(watched) as poller,
            Crew(server.url("recordings"), sink, options, bucket.env, seed=SEED) as crew,
        ):
            wait_until(lambda: crew.kills >= 3, "kills", 60)
            if isinstance(server, RabbitMQ):
                server.kill()
                time.sleep(1)
                server.start()
            rows = expected.dataset_rows().num_rows
            letters = 4 + len(bad)

            def is_done() -> bool:
                return bool(poller.growth) and poller.growth[-1] == rows

            with contextlib.suppress(AssertionError):  # it may take longer than we like to kill
                wait_until(lambda: is_done() and crew.kills > 5, "rows", KILLING_S)
            crew.rest()
            wait_until(is_done, f"rows; {crew.said()}", 600)
            wait_until(
                lambda: len(Letters.of(broker).bodies) >= letters, f"letters; {crew.said()}", 90
            )
            assert crew.kills >= 3
    assert not poller.wrong
    assert poller.polls > 10
    assert proxy.faults
    assert_same_dataset(sink, expected, attempts=False)
    found = Letters.of(broker)
    assert len(found.bodies) == letters
    assert set(found.bodies) >= {m.body for m in bad}
    failed = {f.file_name for f in failed_recordings(sink.store)}
    assert failed <= set(found.about)
    assert max(crew.peaks) < 600 * 1024**2
    broker.close()
