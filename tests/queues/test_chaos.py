"""Workers that are killed, messages twice and in no order, a store that fails, a broker that goes
away: at the end each recording once, at no moment one twice or gone."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from speechmill.audio import EXTENSIONS
from speechmill.dataset.summary import failed_recordings
from speechmill.job import Job
from speechmill.pipeline.planner import make_plan
from speechmill.queues import open_broker
from speechmill.queues.notices import encode
from speechmill.storage import open_store
from tests.support.brokers import RabbitMQ, Tansu
from tests.support.chaos import Chaos
from tests.support.harness import (
    Bucket,
    Command,
    Place,
    Poller,
    Watched,
    assert_same_dataset,
    corpus,
)
from tests.support.queue_work import Crew, Letters, poison, publish_mixed, wait_until
from tests.support.services import SeaweedFS
from tests.support.weights import whisper

MESSAGES, MANY_MESSAGES = 36, 2_000
KILLS, MANY_KILLS = 3, 30
KILLING_S = 240.0
# Real clips for the test that transcribes them; so many of them, some more than once.
CLIPS = Path(__file__).parents[2] / "examples" / "corpus"
CLIPS_COUNT = 100
FOLDERS = 12
LOG = logging.getLogger(__name__)  # --log-cli-level=WARNING shows what a run was like
pytestmark = pytest.mark.timeout(900)


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
    server: Tansu | RabbitMQ, bucket: Bucket, chaos: Chaos
) -> None:
    count = chaos.choose(MESSAGES, MANY_MESSAGES)
    files = corpus(FOLDERS, count // FOLDERS, broken=2)
    # So long that no folder outgrows its parts: then these are the ones that a build has.
    part_minutes = 0.02 * max(1.0, count / 120)
    fake = ("--transcriber", "fake", "--model", "fake:0.02", "--part-minutes", str(part_minutes))
    sink, expected = survive(
        server, bucket, files, fake, chaos, broken=4, part_minutes=part_minutes
    )
    assert_same_dataset(sink, expected, attempts=False)


def test_every_clip_once_whatever_dies(
    server: Tansu | RabbitMQ, bucket: Bucket, chaos: Chaos
) -> None:
    if not chaos.is_long:
        pytest.skip("for minutes on real speech: make chaos")
    whisper("base")
    paths = sorted(p for p in CLIPS.rglob("*") if p.suffix[1:] in EXTENSIONS)
    files = {
        f"{path.parent.name}/{path.stem}-{i // len(paths)}{path.suffix}": path.read_bytes()
        for i, path in zip(range(CLIPS_COUNT), itertools.cycle(paths), strict=False)
    }
    sink, expected = survive(server, bucket, files, ("--model", "base"), chaos, clips=True)
    rows, theirs = sink.dataset_rows(), expected.dataset_rows()
    assert rows["file_name"].equals(theirs["file_name"])
    assert rows["token"].equals(theirs["token"])
    texts = zip(*(t["transcription"].to_pylist() for t in (rows, theirs)), strict=True)
    other = sum(mine != built for mine, built in texts)
    LOG.warning("%d of %d texts differ from the build's", other, rows.num_rows)
    assert other <= 0.01 * rows.num_rows  # rounding differs with a batch's neighbours


def survive(
    server: Tansu | RabbitMQ,
    bucket: Bucket,
    files: Mapping[str, bytes],
    options: tuple[str, ...],
    chaos: Chaos,
    *,
    broken: int = 0,
    clips: bool = False,
    part_minutes: float | None = None,
) -> tuple[Place, Place]:
    """Have workers that are killed make a dataset, and a build that nobody troubles: both sinks."""
    name = f"{'clips' if clips else 'fake'}-{type(server).__name__.lower()}"
    memory = (2_000 if clips else 600) * 1024**2
    source = bucket.fill(f"queue-{name}", files)
    expected = bucket.place(f"s3://dst/expected-{name}")
    build = Command(
        *("build", source.url, expected.url, "--endpoint-url", bucket.server.endpoint_url),
        *options,
    )
    assert build.finish(600).code == (3 if broken else 0)
    sink = bucket.place(f"s3://dst/queue-{name}")
    broker = open_broker(server.url("recordings"))
    broker.prepare()
    job = Job(source=source.url, sink=expected.url)
    if part_minutes is not None:
        job = job.model_copy(update={"part_minutes": part_minutes})
    made = make_plan(job, source.store, open_store("memory://none"), "")
    messages = [
        encode(source.url, recording, part)
        for shard in made.shards
        for part, recordings in shard.parts
        for recording in recordings
    ]
    bad = poison(source.url, "nobody/gone.wav")  # it does not say how many parts
    publish_mixed(broker, [*messages, *bad], chaos.seed)
    kills = chaos.choose(KILLS, MANY_KILLS)
    with Watched(bucket.server.endpoint_url, rate=0.1, seed=chaos.seed) as proxy:
        places = ("--source", source.url, "--endpoint-url", proxy.endpoint_url)
        told = (*places, "--linger-s", "1", *options)
        watched = Place(sink.url, bucket.server.endpoint_url, "r2")
        with (
            Poller(watched) as poller,
            Crew(server.url("recordings"), sink, told, bucket.env, seed=chaos.seed) as crew,
        ):
            wait_until(lambda: crew.kills >= KILLS, "kills", 60)
            if isinstance(server, RabbitMQ):
                server.kill()
                server.start()
            rows = expected.dataset_rows().num_rows
            letters = broken + len(bad)

            def is_done() -> bool:
                return bool(poller.growth) and poller.growth[-1] == rows

            with contextlib.suppress(AssertionError):  # it may take longer than we like to kill
                wait_until(lambda: is_done() and crew.kills >= kills, "rows", KILLING_S)
            crew.rest()
            wait_until(is_done, f"rows; {crew.said()}", 600)
            wait_until(
                lambda: len(Letters.of(broker).bodies) >= letters, f"letters; {crew.said()}", 90
            )
            assert crew.kills >= KILLS
    assert not poller.wrong
    assert poller.polls >= chaos.choose(3, 10)
    assert proxy.faults
    found = Letters.of(broker)
    assert len(found.bodies) == letters
    assert set(found.bodies) >= {m.body for m in bad}
    failed = {f.file_name for f in failed_recordings(sink.store)}
    assert len(failed) == broken
    assert failed <= set(found.about)
    assert max(crew.peaks) < memory
    broker.close()
    chaos.count("kills", crew.kills)
    chaos.count("looks at the sink", poller.polls)
    chaos.count("failed requests", proxy.faults.total())
    LOG.warning(
        "%s: %d kills, %d polls, %d faults, at most %d MB",
        *(name, crew.kills, poller.polls, proxy.faults.total(), max(crew.peaks) // 1024**2),
    )
    return sink, expected
