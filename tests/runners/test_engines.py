"""Dask and Ray by the command line: what a user sees when workers, schedulers or builds die."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from psutil import Process

import speechmill
from speechmill.errors import WorkerDiedError
from speechmill.job import Job
from speechmill.records import Shard
from speechmill.runners.work import Task
from tests.support.engine_work import nothing
from tests.support.harness import Build, Place, assert_same_dataset, corpus, ended, fill_folder
from tests.support.weights import missing

FILES = corpus(12, 3)
SLOW_S = 0.3
BIN = Path(sys.executable).parent
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
QUIET_LINES = re.compile(
    r"\s*$|to do |already done |\d+/\d+ recordings|stopping: |stopped; |error: "
    r"|shard \d+, attempt \d: .*was killed, or was out of memory$"
)
engines = pytest.mark.parametrize("engine", ["dask", "ray"])


@pytest.fixture(autouse=True)
def _engines_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("distributed", "ray"):
        try:
            __import__(name)
        except ImportError:
            missing(f"there is no {name} here: pip install 'speechmill[dask,ray]'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes a token into HOME
    monkeypatch.setenv(
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
    )  # loopback, for heads that we start


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return fill_folder(tmp_path_factory.mktemp("source"), FILES)


@pytest.fixture(scope="module")
def undisturbed(source: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    sink = Place(str(tmp_path_factory.mktemp("undisturbed") / "sink"))
    build_here(source, sink)
    return sink


def build_here(source: Place, sink: Place) -> None:
    """Build in this process what ``Build`` builds in its own."""
    job = Job(
        source=source.url, sink=sink.url, transcriber="fake", model="fake:0.0", part_minutes=0.02
    )
    assert speechmill.build(job).complete


def until(true: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


def family(build: Build) -> list[Process]:
    """The processes that a build has started, and theirs."""
    with suppress(psutil.NoSuchProcess):
        return list(Process(build.pid).children(recursive=True))
    return []


def workers(build: Build) -> list[Process]:
    """Those of them that run shards."""
    found = []
    for process in family(build):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if "spawn_main" in line or line.startswith("ray::_Worker"):
                found.append(process)
    return found


def alive(processes: list[Process]) -> list[Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def ray_agent(process: Process) -> bool:
    """Ray's own helpers, which may take minutes to see that they are alone."""
    with suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline()).strip() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return False


def parts(sink: Place) -> int:
    return len(list(Path(sink.url, "data").rglob("*.parquet")))


def finish_here(source: Place, sink: Place, undisturbed: Place) -> None:
    """The next build, a local one, finishes."""
    assert parts(sink) < parts(undisturbed)
    build_here(source, sink)
    assert_same_dataset(sink, undisturbed)


def assert_no_noise(text: str) -> None:
    assert [line for line in text.splitlines() if not QUIET_LINES.match(line)] == []


@engines
def test_a_worker_is_killed_then_the_build_is_asked_to_stop(
    engine: str, source: Place, undisturbed: Place, tmp_path: Path
) -> None:
    sink = Place(str(tmp_path / "sink"))
    build = Build(source.url, sink.url, "--engine", engine, "--workers", "2", seconds=SLOW_S)
    with ended(build):
        until(lambda: parts(sink))
        relatives = family(build)
        open_to = {
            connection.laddr.ip
            for process in (Process(build.pid), *relatives)
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert open_to
        assert open_to <= LOOPBACK
        workers(build)[0].kill()
        before = parts(sink)
        until(lambda: parts(sink) > before)
        relatives += family(build)
        build.signal(signal.SIGTERM)
        finished = build.finish(25)
    assert finished.code == 128 + signal.SIGTERM
    assert "shard" in finished.err
    assert "the same command goes on from here" in finished.err
    assert_no_noise(finished.err)
    until(lambda: not alive(relatives), 15)
    finish_here(source, sink, undisturbed)


def test_a_dask_worker_that_dies_with_its_result_is_a_death_and_nothing_is_said_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from distributed import Client, LocalCluster

    from speechmill.runners.dask import _start

    job = Job(source="source", sink="sink", transcriber="fake")
    here = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    )
    with here, Client(here, set_as_default=False) as client:
        engine = _start(job, 1, client, nothing)
        until(engine.slots)
        handle = engine.submit(Task(job, Shard(0, ()), "recipe"))
        until(handle.done)
        worker = Process(*client.run(os.getpid).values())
        worker.suspend()  # so that its result is asked for, and does not come
        killer = threading.Timer(0.5, worker.kill)
        killer.start()
        with pytest.raises(WorkerDiedError, match="was killed"):
            engine.result(handle)
        killer.join()
        until(lambda: not client.futures)
        engine.close()
    gc.collect()  # asyncio speaks when what was left behind is thrown away
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_dask_worker_that_died_comes_back_however_long_it_takes() -> None:
    from dask import config

    from speechmill.runners.dask_clusters import start_here, workers_of

    with config.set({"distributed.deploy.lost-worker-timeout": "10ms"}), ExitStack() as stack:
        client = start_here(1, {}, stack)

        def there() -> list[str]:
            return [worker["local_directory"] for worker in workers_of(client).values()]

        (before,) = there()
        Process(*client.run(os.getpid).values()).kill()
        until(lambda: there() not in ([], [before]))
        time.sleep(1)
        assert there()  # and stays


@engines
def test_a_build_that_is_killed_leaves_no_processes(
    engine: str, source: Place, undisturbed: Place, tmp_path: Path
) -> None:
    sink = Place(str(tmp_path / "sink"))
    build = Build(source.url, sink.url, "--engine", engine, "--workers", "2", seconds=SLOW_S)
    with ended(build):
        until(lambda: parts(sink))
        relatives = family(build)
        relatives = [process for process in relatives if not ray_agent(process)]
        assert len(workers(build)) >= 2
        build.kill()
        build.finish()
    until(lambda: not alive(relatives), 20)
    finish_here(source, sink, undisturbed)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(*command: str) -> Iterator[int]:
    """A service in a session of its own; its process id."""
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process.pid
    finally:
        relatives = Process(process.pid).children(recursive=True)
        for one in (*relatives, process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@contextmanager
def dask_cluster() -> Iterator[tuple[str, Callable[[], None]]]:
    """A scheduler and a worker of two threads; its address, and what kills the scheduler."""
    address = f"tcp://127.0.0.1:{(port := free_port())}"
    with (
        started(
            "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
        ) as scheduler,
        started("dask", "worker", address, "--nthreads", "2", "--no-dashboard"),
    ):
        yield address, lambda: os.kill(scheduler, signal.SIGKILL)


@contextmanager
def ray_cluster() -> Iterator[tuple[str, Callable[[], None]]]:
    """A head of two cores; its address, and what kills it."""
    port = free_port()
    with started(
        "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
    ) as head:  # fmt: skip

        def kill() -> None:
            for process in Process(head).children(recursive=True):
                if process.name() == "gcs_server":
                    process.kill()

        until(lambda: any(p.name() == "raylet" for p in Process(head).children(True)))
        address = f"127.0.0.1:{port}"
        until(lambda: has_node(address))
        yield address, kill


def has_node(address: str) -> bool:
    """Whether a node has told the head that it is there."""
    import ray

    try:
        return bool(ray._raylet.GcsClient(address=address).get_all_node_info(timeout=5))
    except Exception:  # noqa: BLE001 - nothing listens yet
        return False


CLUSTERS = {"dask": dask_cluster, "ray": ray_cluster}


@engines
def test_a_cluster_is_used_by_its_address_and_its_end_is_one_line(
    engine: str, source: Place, undisturbed: Place, tmp_path: Path
) -> None:
    sink = Place(str(tmp_path / "sink"))
    with CLUSTERS[engine]() as (address, kill):
        build = Build(source.url, sink.url, "--engine", engine, "--address", address, seconds=1)
        with ended(build):
            until(lambda: parts(sink))
            kill()
            finished = build.finish(30)
    assert finished.code == 1
    assert re.search(r"error: the (Dask scheduler|Ray cluster's head) has gone", finished.err)
    assert "the same command goes on from here" in " ".join(finished.err.split())
    assert "Traceback" not in finished.err
    finish_here(source, sink, undisturbed)


@pytest.mark.parametrize(
    ("engine", "address", "code", "said"),
    [
        ("dask", "tcp://127.0.0.1:1", 1, "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("dask", "ray://127.0.0.1:1", 2, "is no Dask scheduler's"),
        ("ray", "127.0.0.1:1", 1, "nothing listens at 127.0.0.1:1"),
        ("ray", "tcp://127.0.0.1:1", 2, "is no Ray cluster's"),
    ],
)
def test_a_wrong_address_is_one_line_soon(
    engine: str, address: str, code: int, said: str, source: Place, tmp_path: Path
) -> None:
    build = Build(source.url, str(tmp_path / "sink"), "--engine", engine, "--address", address)
    with ended(build):
        finished = build.finish(30)
    assert finished.code == code
    assert said in " ".join(finished.err.split())
    assert len(finished.err.partition("error: ")[2].splitlines()) <= 3  # one, wrapped
    assert "Traceback" not in finished.err
