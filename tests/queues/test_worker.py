"""A worker in this process, on a broker in memory: what it takes, makes, drops and gives up."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

import speechmill
from speechmill.dataset.layout import read_layout
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import (
    BrokerError,
    JobError,
    RecipeChangedError,
    SourceChangedError,
    StorageError,
    UnavailableError,
)
from speechmill.job import Job
from speechmill.pipeline.shard import process_shard
from speechmill.queues import dead_letters, open_broker
from speechmill.queues import run as run_module
from speechmill.queues import worker as worker_module
from speechmill.queues.base import Broker, Message
from speechmill.queues.dead_letters import read_dead_letters, retry_dead_letters
from speechmill.queues.enqueue import NO_SINK, enqueue
from speechmill.queues.metrics import serve
from speechmill.queues.notices import Notice, encode
from speechmill.queues.options import WorkOptions
from speechmill.queues.run import OF_SINK, work
from speechmill.queues.tally import Observer, WorkReport, WorkTally
from speechmill.records import Part, Recording, Shard, ShardReport
from speechmill.storage import open_store
from tests.support.audio_files import pcm_wav
from tests.support.harness import Place, assert_same_dataset, corpus, fill_folder, recording
from tests.support.queue_work import poison, publish_mixed

FILES = corpus(4, 6, broken=2)


@pytest.fixture
def queue() -> str:
    return f"memory://{uuid4().hex}/recordings"


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return fill_folder(tmp_path / "source", FILES)


@pytest.fixture
def job(source: Place, tmp_path: Path) -> Job:
    return Job(
        source=source.url, sink=str(tmp_path / "sink"), transcriber="fake", part_minutes=0.02
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(worker_module, "IDLE_S", 0.1)
    monkeypatch.setattr(worker_module, "HURRY_S", 0.05)
    monkeypatch.setattr(worker_module, "TICK_S", 0.02)
    monkeypatch.setattr(run_module, "LOOK_S", 0.02)
    monkeypatch.setattr(dead_letters, "IDLE_S", 0.05)


def enqueued(job: Job, queue: str, **options: Any) -> int:
    return enqueue(job.model_copy(update=options), open_broker(queue)).published


def worked(job: Job, queue: str, **options: Any) -> WorkReport:
    settings = {"until_empty": True, "metrics": "none", **options}
    return work(job, WorkOptions(queue=queue, **settings))


def letters(queue: str) -> list[tuple[str, str]]:
    return sorted((d.what, d.error) for d in read_dead_letters(open_broker(queue)))


def built(job: Job) -> Place:
    """What a build makes of the same."""
    sink = f"{job.sink}-built"
    speechmill.build(job.model_copy(update={"sink": sink}))
    return Place(sink)


def test_a_worker_makes_the_dataset_that_a_build_makes(job: Job, queue: str) -> None:
    assert enqueued(job, queue) == len(FILES)
    report = worked(job, queue)
    assert (report.rows, report.failed, report.dead_letters) == (24, 4, 4)
    assert report.messages == len(FILES)
    assert not report.complete
    assert_same_dataset(Place(job.sink), built(job))
    assert letters(queue) == [
        ("p00/short.wav", "TruncatedError"),
        ("p00/text.flac", "NotAudioError"),
        ("p02/short.wav", "TruncatedError"),
        ("p02/text.flac", "NotAudioError"),
    ]
    assert enqueued(job, queue) == 0  # nothing is lacking


def test_a_worker_splits_channels_as_a_build_does(job: Job, queue: str, source: Place) -> None:
    two = np.random.default_rng(1).uniform(-0.3, 0.3, (2, 4_000)).astype(np.float32)
    for number in range(3):
        (Path(source.url) / f"p01/call{number}.wav").write_bytes(pcm_wav(two, 8_000))
    splitting = job.model_copy(update={"channels": "split"})
    enqueued(splitting, queue)
    assert worked(splitting, queue).rows == 24 + 6
    made, wanted = (
        place.dataset_rows().sort_by([("file_name", "ascending"), ("channel", "ascending")])
        for place in (Place(job.sink), built(splitting))
    )
    assert made.equals(wanted)
    assert Counter(made["channel"].to_pylist()) == {0: 27, 1: 3}


def test_a_message_of_an_apple_double_file_is_left_out(job: Job, queue: str, source: Place) -> None:
    broker = open_broker(queue)
    names = ("p00/._p00_001.wav", "p00/._sound.wav")
    for name, data in zip(names, (b"\x00\x05\x16\x07" + bytes(60), recording(7)), strict=True):
        (Path(source.url) / name).write_bytes(data)
        there = open_store(source.url).head(name)
        found = Recording(name, there.size, there.etag, there.modified_us)
        broker.publish([encode(source.url, found, Part("p00", 0, 1))])
    report = worked(job, queue)
    assert (report.rows, report.left_out, report.failed) == (1, 1, 0)
    assert Place(job.sink).names() == ["p00/._sound.wav"]


def test_a_worker_that_is_told_to_measure_gives_the_values_of_a_build(job: Job, queue: str) -> None:
    measuring = job.model_copy(update={"measure": ("level", "fake")})
    enqueued(measuring, queue)
    assert worked(measuring, queue).rows == 24
    found = speechmill.open_dataset(job.sink).to_table()
    assert found["peak_dbfs"].null_count == found["fake_score"].null_count == 0
    assert_same_dataset(Place(job.sink), built(measuring))


def test_parts_are_those_of_the_messages(job: Job, queue: str) -> None:
    """Without a sink, the enqueuer's guess of parts travels with the messages."""
    assert enqueued(job, queue, sink=NO_SINK) == len(FILES)
    assert worked(job, queue).rows == 24
    assert_same_dataset(Place(job.sink), built(job))


def test_twice_and_in_no_order_is_as_once(job: Job, queue: str) -> None:
    broker = open_broker(queue)
    enqueued(job, queue)
    consumer = broker.consume("")
    taken = consumer.receive(100, 1)
    consumer.ack(taken)
    publish_mixed(broker, [d.message for d in taken] * 2, seed=3)
    report = worked(job, queue, batch_recordings=5)
    assert report.rows == 24
    assert report.messages == 4 * len(FILES)
    assert_same_dataset(Place(job.sink), built(job), attempts=False)
    assert len(letters(queue)) == 4
    assert worked(job, queue).messages == 0


def test_what_is_done_is_only_acknowledged(job: Job, queue: str) -> None:
    enqueued(job, queue, sink=NO_SINK)
    speechmill.build(job)
    before = Place(job.sink).objects()
    report = worked(job, queue)
    assert (report.rows, report.there) == (0, 24)
    after = Place(job.sink).objects()
    assert {k: v for k, v in after.items() if k.startswith("data/")} == {
        k: v for k, v in before.items() if k.startswith("data/")
    }


def test_poison_goes_to_the_dead_letters_and_the_rest_goes_on(job: Job, queue: str) -> None:
    broker = open_broker(queue)
    bad = poison(job.source, "p00/gone.wav")
    stranger = Message(bad[2].body.replace(job.source.encode(), b"s3://elsewhere/vctk"))
    broker.publish([*bad, stranger])
    enqueued(job, queue, exclude=("*short.wav", "*text.flac"))
    report = worked(job, queue)
    assert (report.rows, report.failed, report.dead_letters) == (24, 0, 4)
    found = read_dead_letters(broker)
    assert {d.message.body for d in found} == {m.body for m in (*bad, stranger)}
    reasons = {d.message.body: d for d in found}
    assert "not JSON" in reasons[bad[0].body].reason
    missing = reasons[bad[2].body]
    assert (missing.what, missing.error, missing.attempts) == ("p00/gone.wav", "NotFoundError", 3)
    assert "elsewhere" in reasons[stranger.body].reason
    assert all(d.time for d in found)


def test_dead_letters_can_be_tried_again_once_the_cause_is_gone(
    job: Job, queue: str, source: Place
) -> None:
    enqueued(job, queue)
    assert worked(job, queue).dead_letters == 4
    for name in FILES:
        if "_" not in name:
            (Path(source.url) / name).write_bytes(recording(5))
    broker = open_broker(queue)
    assert retry_dead_letters(broker) == (4, 0)
    assert letters(queue) == []
    report = worked(job, queue)
    assert (report.rows, report.failed, report.dead_letters) == (4, 0, 0)
    assert failed_recordings(open_store(job.sink)) == []
    assert retry_dead_letters(broker) == (0, 0)


def test_a_newer_version_replaces_the_row_and_an_older_message_does_not(
    job: Job, queue: str, source: Place
) -> None:
    enqueued(job, queue, sink=NO_SINK)
    old = open_broker(queue).consume("")
    messages = [d.message for d in old.receive(100, 1)]
    old.close()
    worked(job, queue)
    path = Path(source.url) / "p01/p01_001.wav"
    path.write_bytes(recording(77))
    assert enqueued(job, queue, exclude=("*short.wav", "*text.flac")) == 1
    assert worked(job, queue).rows == 1
    expected = Place(job.sink).dataset_rows()
    open_broker(queue).publish(messages)  # all of them late, and one of a version that is gone
    assert worked(job, queue).rows <= 1
    assert Place(job.sink).dataset_rows().equals(expected)


def test_attempts_are_counted_and_what_passes_is_made_good(
    job: Job, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechmill.storage.local import LocalStore

    failing = {"p01/p01_002.wav": 2, "p03/p03_001.wav": 99}
    get = LocalStore.get

    def sometimes(self: LocalStore, key: str) -> Any:
        if failing.get(key, 0):
            failing[key] -= 1
            raise StorageError(f"{key}: not now")
        return get(self, key)

    monkeypatch.setattr(LocalStore, "get", sometimes)
    enqueued(job, queue, exclude=("*short.wav", "*text.flac"))
    report = worked(job, queue)
    assert report.rows == 23
    assert letters(queue) == [("p03/p03_001.wav", "StorageError")]
    assert [f.file_name for f in failed_recordings(open_store(job.sink))] == ["p03/p03_001.wav"]


def test_a_store_that_stays_down_ends_the_worker_and_loses_nothing(
    job: Job, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechmill.queues.batch import BatchProcessor

    def down(*_: object, **__: object) -> None:
        raise UnavailableError("the store is down")

    enqueued(job, queue)
    with monkeypatch.context() as patch:
        patch.setattr(BatchProcessor, "process", down)
        with pytest.raises(UnavailableError, match="the store is down"):
            worked(job, queue)
    assert worked(job, queue).rows == 24


def s3_event(name: str, key: str) -> Message:
    record = {
        "eventName": name,
        "s3": {"bucket": {"name": "voices"}, "object": {"key": key.replace(" ", "+"), "size": 1}},
    }
    return Message(json.dumps({"Records": [record]}).encode())


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, job: Job) -> Job:
    """A job whose source is a folder that events know as a bucket."""

    def below(url: str, notice: Notice) -> str | None:
        return notice.key if notice.source == "s3://voices" else None

    monkeypatch.setattr(worker_module, "key_below", below)
    return job


def test_events_build_and_on_request_drop_rows(bucket: Job, queue: str, source: Place) -> None:
    broker = open_broker(queue)
    names = [n for n in FILES if "_" in n]
    broker.publish([s3_event("ObjectCreated:Put", n) for n in names])
    broker.publish(
        [
            s3_event("ObjectCreated:Put", "notes.txt"),
            s3_event("ObjectTagging:Put", names[0]),
            Message(b'{"Event": "s3:TestEvent"}'),
        ]
    )
    report = worked(bucket, queue)
    assert (report.rows, report.dead_letters, report.left_out) == (24, 0, 1)
    # Removed: nothing is dropped unless that is asked for, nor while the object is there.
    (Path(source.url) / names[0]).unlink()
    gone = [s3_event("ObjectRemoved:Delete", n) for n in names[:2]]
    broker.publish(gone)
    assert worked(bucket, queue).left_out == 2
    assert len(Place(bucket.sink).names()) == 24
    broker.publish(gone)
    report = worked(bucket, queue, drop_removed=True)
    assert (report.dropped, report.there) == (1, 1)
    assert Place(bucket.sink).names() == sorted(names[1:])
    # There again: built again, also when the event of its removal comes last.
    (Path(source.url) / names[0]).write_bytes(recording(9))
    broker.publish([s3_event("ObjectCreated:Put", names[0]), gone[0]])
    assert worked(bucket, queue, drop_removed=True).rows == 1
    assert Place(bucket.sink).names() == sorted(names)


def test_folders_that_outgrow_their_parts_get_more(bucket: Job, queue: str) -> None:
    """Events do not say how large a folder will be: it begins with one part."""
    job = bucket.model_copy(update={"part_minutes": 0.005})
    broker = open_broker(queue)
    names = [n for n in FILES if "_" in n]
    for name in names:
        broker.publish([s3_event("ObjectCreated:Put", name)])
        worked(job, queue)
    layout = read_layout(open_store(job.sink))
    assert max(layout.folders.values()) >= 4
    assert layout.earlier
    assert Place(job.sink).names() == sorted(names)


def test_what_is_not_chosen_is_left_out(job: Job, queue: str) -> None:
    enqueued(job, queue)
    chosen = job.model_copy(update={"include": ("p01",)})
    report = worked(chosen, queue)
    assert (report.rows, report.left_out) == (6, len(FILES) - 6)


class Stopper(Observer):
    """Stops a worker once so many recordings are done."""

    def __init__(self, count: int) -> None:
        self.count, self.tally = count, WorkTally()

    def __call__(self) -> bool:
        return self.tally.done.recordings >= self.count

    def progress(self, tally: WorkTally) -> None:
        self.tally = tally


def test_a_stop_settles_what_is_done_and_gives_the_rest_back(job: Job, queue: str) -> None:
    enqueued(job, queue, exclude=("*short.wav", "*text.flac"))
    stopper = Stopper(5)
    slow = job.model_copy(update={"model": "fake:0.05", "batch_size": 1})
    options = WorkOptions(queue=queue, metrics="none", batch_recordings=4)
    report = work(slow, options, observer=stopper, stop=stopper)
    assert report.stopped
    assert 5 <= report.rows < 24
    assert len(Place(job.sink).names()) == report.rows
    consumer = open_broker(queue).consume("")
    assert len(consumer.receive(100, 0.5)) == 24 - report.rows
    consumer.close()


class Died(BaseException):
    """What a worker dies of, in this process."""


def test_what_workers_die_of_is_found_out_and_set_aside(
    job: Job, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechmill.queues import batch

    killer = "p02/p02_003.wav"
    deaths = []

    def deadly(job: Job, shard: Shard, **options: Any) -> ShardReport:
        if any(r.file_name == killer for _, recordings in shard.parts for r in recordings):
            deaths.append(shard.num_recordings)
            raise Died
        return process_shard(job, shard, **options)

    broker = open_broker(queue)
    enqueued(job, queue, exclude=("*short.wav", "*text.flac"))
    with monkeypatch.context() as patch:
        patch.setattr(batch, "process_shard", deadly)
        for _ in range(40):
            try:
                worked(job, queue)
            except Died:
                continue
            break
    assert deaths[0] > 1
    assert deaths[-6:] == [1] * 6  # alone, twice for each attempt
    assert len(deaths) < 20
    (failure,) = failed_recordings(open_store(job.sink))
    assert (failure.file_name, failure.stage) == (killer, "worker")
    assert letters(queue) == [(killer, "WorkerDiedError")]
    assert len(Place(job.sink).names()) == 23
    assert retry_dead_letters(broker) == (1, 0)
    assert worked(job, queue).rows == 1
    assert failed_recordings(open_store(job.sink)) == []
    assert not [o for o in open_store(job.sink).list("_speechmill") if "suspects" in o.key]


def test_what_was_only_in_hand_when_workers_died_is_not_blamed(job: Job, queue: str) -> None:
    enqueued(job, queue, exclude=("*short.wav", "*text.flac"))
    for _ in range(30):  # each takes all there is, and goes away
        consumer = open_broker(queue).consume("")
        assert len(consumer.receive(100, 0.5)) == 24
        consumer.close()
    report = worked(job, queue)
    assert (report.rows, report.failed, report.dead_letters) == (24, 0, 0)


def test_a_worker_with_other_options_than_the_sink_has_is_refused(job: Job, queue: str) -> None:
    enqueued(job, queue)
    worked(job, queue)
    other = job.model_copy(update={"tokenizer": ("none",)})
    with pytest.raises(RecipeChangedError):
        worked(other, queue)
    moved = job.model_copy(update={"source": str(Path(job.source).parent)})
    with pytest.raises(SourceChangedError):
        worked(moved, queue)
    with pytest.raises(SourceChangedError, match="give that source"):
        enqueued(moved, queue)


def test_options_that_make_no_sense_are_refused(job: Job, queue: str) -> None:
    with pytest.raises(JobError, match="single_writer"):
        worked(job.model_copy(update={"single_writer": True}), queue)
    with pytest.raises(JobError, match="metrics: write HOST:PORT"):
        worked(job, queue, metrics="somewhere")
    with pytest.raises(JobError, match="linger_s"):
        WorkOptions(queue=queue, linger_s=-1)
    with pytest.raises(JobError, match="did you mean 'group'"):
        WorkOptions(queue=queue, groop="x")
    with pytest.raises(JobError, match="write NAME=VALUE"):
        WorkOptions(queue=queue, broker_option=["nonsense"])


def test_no_message_says_what_is_read(job: Job, queue: str, tmp_path: Path) -> None:
    assert enqueued(job, queue, sink=NO_SINK) == len(FILES)
    unsaid = job.model_copy(update={"source": OF_SINK})
    with pytest.raises(JobError, match="give --source"):
        worked(unsaid, queue)
    elsewhere = job.model_copy(update={"source": str(tmp_path / "elsewhere")})
    (tmp_path / "elsewhere").mkdir()
    assert worked(elsewhere, queue).dead_letters == len(FILES)
    assert retry_dead_letters(open_broker(queue)) == (len(FILES), 0)
    worked(job.model_copy(update={"sink": f"{job.sink}-2"}), queue)
    assert enqueued(job, queue, sink=NO_SINK) == len(FILES)
    assert worked(unsaid.model_copy(update={"sink": f"{job.sink}-2"}), queue).there == 24


def test_an_empty_queue_ends_at_once(job: Job, queue: str) -> None:
    started = time.monotonic()
    assert worked(job, queue).messages == 0
    assert time.monotonic() - started < 20


def test_metrics_and_health_are_served_on_loopback_while_it_works(job: Job, queue: str) -> None:
    enqueued(job, queue)
    pages: dict[str, str] = {}
    address: list[str] = []

    class Watcher(Stopper):
        def ready(self, queue: str, sink: str, metrics: str) -> None:
            address.append(metrics)

        def progress(self, tally: WorkTally) -> None:
            super().progress(tally)
            if tally.done.recordings >= self.count:
                for page in ("metrics", "healthz", "readyz"):
                    with urllib.request.urlopen(f"http://{address[0]}/{page}", timeout=5) as reply:
                        pages[page] = reply.read().decode()

    watcher = Watcher(20)
    work(job, WorkOptions(queue=queue, linger_s=0.2), observer=watcher, stop=watcher)
    assert address[0].startswith("127.0.0.1:")
    assert pages["healthz"] == pages["readyz"] == "ok\n"
    lines = dict(
        line.rsplit(" ", 1) for line in pages["metrics"].splitlines() if not line.startswith("#")
    )
    assert float(lines["speechmill_rows_total"]) >= 16
    assert float(lines["speechmill_messages_total"]) == len(FILES)
    assert float(lines['speechmill_recordings_total{outcome="row"}']) >= 16
    assert float(lines["speechmill_batch_seconds_count"]) >= 1
    assert float(lines['speechmill_stage_seconds_total{stage="decode"}']) > 0
    assert float(lines["speechmill_written_bytes_total"]) > 0
    assert "speechmill_lag" in lines


def test_several_workers_of_a_machine_each_have_a_port() -> None:
    with serve("") as one, serve("") as two:
        assert one
        assert two
        assert one.address != two.address
        taken = one.address
        with pytest.raises(JobError, match="nothing can be served"), serve(taken):
            pass


def test_health_says_when_there_is_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechmill.queues import metrics

    with serve("") as endpoint:
        assert endpoint
        assert endpoint.page("/healthz")[0] == 200  # it is setting up
        assert endpoint.page("/readyz")[0] == 503
        endpoint.progress(WorkTally())
        assert endpoint.page("/readyz")[0] == 200
        monkeypatch.setattr(metrics, "SILENT_S", -1.0)
        assert endpoint.page("/healthz")[0] == endpoint.page("/readyz")[0] == 503
        assert endpoint.page("/")[0] == 404


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("with_sink", [True, False])
def test_enqueue_goes_on_where_it_was_cut_short(
    job: Job,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: Place,
    with_sink: bool,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("speechmill.queues.enqueue.CHUNK", 5)
    for name in FILES:  # what is as young as the run may have changed meanwhile
        os.utime(Path(source.url) / name, (1_700_000_000, 1_700_000_000))
    asked = job if with_sink else job.model_copy(update={"sink": NO_SINK})
    broker = open_broker(queue)
    publish, sent = broker.publish, list[Message]()

    def twice(messages: Sequence[Message]) -> None:
        if len(sent) == 10:
            raise BrokerError("gone")
        sent.extend(messages)
        publish(messages)

    monkeypatch.setattr(broker, "publish", twice)
    with pytest.raises(BrokerError):
        enqueue(asked, broker)
    # One of those that were published changes meanwhile: it is published again.
    first = json.loads(sent[0].body)["key"]
    (Path(source.url) / first).write_bytes(recording(99))
    report = enqueue(asked, open_broker(queue))
    assert (report.resumed, report.published) == (9, len(FILES) - 9)
    consumer = open_broker(queue).consume("")
    keys = Counter(json.loads(d.message.body)["key"] for d in consumer.receive(1_000, 1))
    assert keys == Counter([*FILES, first])
    assert enqueue(asked, open_broker(queue)).published == len(FILES)  # a run of its own


def test_enqueue_publishes_part_by_part(job: Job, queue: str) -> None:
    enqueued(job, queue)
    keys = [d.message.key for d in open_broker(queue).consume("").receive(1_000, 1)]
    changes = sum(1 for one, other in itertools.pairwise(keys) if one != other)
    assert changes == len(set(keys)) - 1
    assert len(set(keys)) > 4


def test_enqueue_follows_the_sinks_own_rules(job: Job, queue: str) -> None:
    speechmill.build(job.model_copy(update={"folder": "first", "limit": 3}))
    agreed = read_layout(open_store(job.sink)).folders
    assert enqueued(job, queue) == len(FILES) - 3
    assert agreed.items() <= read_layout(open_store(job.sink)).folders.items()


def test_a_worker_that_waits_takes_what_comes_and_batches_it(job: Job, queue: str) -> None:
    """Without --until-empty; messages trickle in, and are gathered for a while."""
    enqueued(job, f"{queue}-all", exclude=("*short.wav", "*text.flac"))
    messages = [d.message for d in open_broker(f"{queue}-all").consume("").receive(12, 1)]
    stopper = Stopper(12)

    def trickle(broker: Broker) -> None:
        for message in messages:
            broker.publish([message])
            time.sleep(0.03)

    feeding = threading.Thread(target=trickle, args=(open_broker(queue),))
    feeding.start()
    options = WorkOptions(queue=queue, metrics="none", linger_s=1.0)
    report = work(job, options, observer=stopper, stop=stopper)
    feeding.join()
    assert report.rows == 12
    assert report.batches <= 4


def test_a_source_that_is_not_there_leaves_no_trace(job: Job, queue: str, tmp_path: Path) -> None:
    enqueued(job, queue, sink=NO_SINK)
    mistyped = job.model_copy(update={"source": str(tmp_path / "sorce")})
    with pytest.raises(StorageError, match="sorce"):
        worked(mistyped, queue)
    assert not Path(job.sink).exists()
