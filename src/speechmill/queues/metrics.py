"""Serve a worker's metrics for Prometheus, and its health for Kubernetes, over HTTP.

It listens on the loopback interface unless another address is given: the metrics name no folder or
recording, but the volume of work is private, too.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from speechmill.errors import JobError, MissingExtraError
from speechmill.queues.tally import WorkTally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["DEFAULT_PORT", "Endpoint", "serve"]

_log = logging.getLogger(__name__)

LOOPBACK, DEFAULT_PORT = "127.0.0.1", 9464
PORTS = 20  # tried from it on, where several workers share a machine
SILENT_S = 60.0  # without progress the worker counts as hung
CONNECTIONS = 64  # at the same time: probes and scrapes are a few a second, over in milliseconds
CONNECTION_S = 10.0  # a scrape may take so long by Prometheus' own default
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Endpoint:
    """Serves ``/metrics``, ``/healthz`` (it makes progress) and ``/readyz`` (it takes messages)."""

    def __init__(self, host: str, ports: range) -> None:
        try:
            from prometheus_client import CollectorRegistry, Histogram
        except ImportError:
            raise MissingExtraError("metrics (or --metrics none)", "kafka") from None
        self._tally: WorkTally | None = None
        self._seen_at = time.monotonic()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._sizes = Histogram(
            "speechmill_batch_recordings", "Recordings of a batch.", buckets=SIZES,
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "speechmill_batch_seconds", "Seconds that a batch took.", buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._server = _bound(host, ports, self)
        self.address = "{}:{}".format(*self._server.server_address[:2])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def progress(self, tally: WorkTally) -> None:
        """Note that the worker makes progress."""
        self._tally, self._seen_at = tally, time.monotonic()

    def batch(self, count: int, seconds: float) -> None:
        """Observe a batch that is done."""
        self._sizes.observe(count)
        self._seconds.observe(seconds)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def page(self, path: str) -> tuple[int, str, bytes]:
        """Make a page: its status, content type and text."""
        plain = "text/plain; charset=utf-8"
        silent_s = time.monotonic() - self._seen_at
        if path == "/metrics":
            from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            if silent_s < SILENT_S or self._tally is None:  # it is setting up
                return 200, plain, b"ok\n"
            return 503, plain, f"no sign of life for {silent_s:.0f} s\n".encode()
        if path == "/readyz":
            ready = self._tally is not None and silent_s < SILENT_S
            return (200, plain, b"ok\n") if ready else (503, plain, b"not ready\n")
        return 404, plain, b"there are /metrics, /healthz and /readyz\n"

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as Prometheus' registry asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        tally = self._tally or WorkTally()
        done = tally.done
        for name, text, value in (
            ("messages", "Messages taken.", tally.messages),
            ("rows", "Rows made.", done.rows),
            ("audio_seconds", "Seconds of audio processed.", done.audio_s),
            ("failed_recordings", "Recordings that failed, each attempt.", done.failed),
            ("dead_letters", "Messages that went to the dead letters.", tally.dead_letters),
            ("batches", "Batches done.", tally.batches),
            ("commit_conflicts", "Commits begun anew, as others came first.", tally.conflicts),
            ("commit_seconds", "Seconds of commits.", tally.commit_s),
            ("written_bytes", "Bytes of parts written.", tally.written_bytes),
        ):
            counter = CounterMetricFamily(f"speechmill_{name}", text)
            counter.add_metric([], value)
            yield counter
        outcomes = CounterMetricFamily(
            "speechmill_recordings", "Recordings asked for, by outcome.", labels=["outcome"]
        )
        for verdict, count in sorted(tally.verdicts.items()):
            outcomes.add_metric([verdict.replace(" ", "_")], count)
        yield outcomes
        stages = CounterMetricFamily(
            "speechmill_stage_seconds", "Seconds by stage, of all threads.", labels=["stage"]
        )
        for stage, seconds in done.stages.items():
            stages.add_metric([stage.removesuffix("_s")], seconds)
        yield stages
        yield GaugeMetricFamily(
            "speechmill_in_hand", "Messages that are not settled yet.", value=tally.in_hand
        )
        if tally.lag is not None:
            yield GaugeMetricFamily(
                "speechmill_lag", "Messages that wait, those in hand among them.", value=tally.lag
            )


@contextlib.contextmanager
def serve(address: str) -> Iterator[Endpoint | None]:
    """Serve metrics within the block: at HOST:PORT; nowhere with "none"; with "" at the first free
    port of the loopback interface from 9464 on.

    Raises:
        JobError: the address makes no sense, or is taken.
        MissingExtraError: the client library is not installed.
    """
    if address == "none":
        yield None
        return
    host, colon, port = address.rpartition(":")
    if address and not (colon and port.isdecimal() and int(port) < 65_536):
        raise JobError(
            f"metrics: write HOST:PORT, such as 127.0.0.1:9464, or none, not {address!r}"
        )
    first = int(port) if address else DEFAULT_PORT
    ports = range(first, first + 1) if address else range(first, first + PORTS)
    try:
        endpoint = Endpoint(host.strip("[]") or LOOPBACK, ports)
    except MissingExtraError:
        if address:
            raise
        yield None
        return
    with contextlib.closing(endpoint):
        yield endpoint


class _Server(http.server.ThreadingHTTPServer):
    """Answers each connection in a thread, for a short time only, and not too many: of more than
    ``CONNECTIONS`` the oldest is cut. So clients that say nothing keep no thread and no probe away.
    """

    request_queue_size = 2 * CONNECTIONS  # those that come at once wait in the kernel

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}  # connections, the oldest first, and until when
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic() + CONNECTION_S
        self.service_actions()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut connections whose time is over, and those that are too many; twice a second."""
        now = time.monotonic()
        with self._lock:
            too_many = len(self._open) - CONNECTIONS
            for number, (connection, until) in enumerate(self._open.items()):
                if number < too_many or until < now:
                    with contextlib.suppress(OSError):  # its thread then reads its end
                        connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a connection to the metrics has failed", exc_info=True)


def _bound(host: str, ports: range, endpoint: Endpoint) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, text = endpoint.page(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            return

    for port in ports:
        try:
            return _Server((host, port), Handler)
        except OSError as error:
            if port == ports[-1]:
                why = error.strerror or str(error)
                raise JobError(f"metrics: nothing can be served at {host}:{port}: {why}") from None
    raise AssertionError("there is a port")
