"""The server of metrics stays there for probes, whatever its clients do."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from speechmill.queues import metrics
from speechmill.queues.metrics import CONNECTIONS, Endpoint, serve
from tests.support.queue_work import wait_until


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serve("127.0.0.1:0") as served:
        assert served is not None
        yield served


def status(endpoint: Endpoint, path: str = "/healthz") -> int:
    with urllib.request.urlopen(f"http://{endpoint.address}{path}", timeout=5) as reply:
        return int(reply.status)


def connect(endpoint: Endpoint) -> socket.socket:
    host, _, port = endpoint.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_a_thousand_open_connections_stop_no_probe(endpoint: Endpoint) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    before = threading.active_count()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(connect(endpoint)).send(b"GET /metrics HTT")
            started = time.monotonic()
            assert status(endpoint) == 200
            assert status(endpoint, "/metrics") == 200
            assert time.monotonic() - started < 3
            wait_until(
                lambda: threading.active_count() <= before + CONNECTIONS, "no more threads", 10
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "slow"])
def test_a_client_that_does_not_end_is_cut(
    drips: bool, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CONNECTION_S", 1.0)
    before = threading.active_count()
    with connect(endpoint) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n")
        deadline = time.monotonic() + 10
        client.settimeout(0.1)
        while True:
            assert time.monotonic() < deadline
            try:
                if drips:
                    client.sendall(b"X")
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    wait_until(lambda: threading.active_count() <= before, "the thread has ended", 5)


def test_clients_that_go_away_leave_nothing_on_standard_error(
    endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(20):
        client = connect(endpoint)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        client.close()  # with a reset
    assert status(endpoint) == 200
    assert capfd.readouterr().err == ""
