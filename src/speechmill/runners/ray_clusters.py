"""Ray clusters: reaching one, starting one on this machine, and whether one is still there."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from speechmill.errors import EngineError, JobError
from speechmill.machine import num_cores
from speechmill.runners.cluster import GOES_ON, first_line, listens, settings

__all__ = ["QUIET", "Head", "connect", "start_here"]

HEAD_EVERY_S = 1.0
HEAD_MISSES = 3  # so often in a row it does not answer before it is said to have gone
CLOSE_S = 10.0
CLIENT_PORT, HEAD_PORT = 10001, 6379
OBJECT_STORE_BYTES = 100 * 2**20  # only text goes through it
# No reports to Ray's makers, no comments of its processes on the terminal.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nor minutes of waiting for a head that does not answer.
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "12",
    "RAY_py_gcs_connect_timeout_s": "8",
}

T = TypeVar("T")


class Head:
    """The head node: whether it is there. Ray itself waits a minute, then ends this process."""

    def __init__(self, ray: Any) -> None:
        self.gone = False
        self._ray = ray
        self._client = ray.util.client.ray.is_connected()
        address: str = "" if self._client else ray.get_runtime_context().gcs_address
        self._host, _, self._port = address.rpartition(":")
        self._asked_at = time.monotonic()
        self._misses = 0

    def asked(self, question: Callable[[], T]) -> T:
        """What Ray answers to something that it asks its head for, for as long as there is one:
        Ray would wait a minute for it.

        Raises:
            EngineError: the head has gone.
        """
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        while True:
            try:
                return answer.result(HEAD_EVERY_S)
            except TimeoutError:
                if answer.done():
                    raise
                self.check()

    def check(self) -> None:
        """Ask it, unless it was asked just now.

        Raises:
            EngineError: it has gone.
        """
        now = time.monotonic()
        if now - self._asked_at < HEAD_EVERY_S:
            return
        self._asked_at = now
        if self._client:
            self.gone = not self._ray.util.client.ray.is_connected()
        else:
            self._misses = 0 if listens(self._host, int(self._port)) else self._misses + 1
            self.gone = self._misses >= HEAD_MISSES
        if self.gone:
            raise EngineError(f"the Ray cluster's head has gone; {GOES_ON}")


def connect(ray: Any, address: str, stack: ExitStack) -> None:
    """Connect to a cluster; ``stack`` is what leaves it.

    Raises:
        JobError: the address makes no sense.
        EngineError: there is no cluster, or none that can be used.
    """
    from ray._private import ray_constants, services

    complaint = f"no Ray cluster can be used at {address}"
    if address.startswith("ray://"):
        _knock(address)
    else:
        if address != "auto":
            _host_and_port(address)
        try:  # what Ray makes of it: it takes this machine's names for its address outside
            _knock(services.canonicalize_bootstrap_address(address, None))
        except ConnectionError as error:
            raise EngineError(f"{complaint}: {first_line(error)}") from None
    with _patched(ray_constants, "NUM_REDIS_GET_RETRIES", 1):
        _init(ray, stack, complaint, address=address)


def start_here(ray: Any, num_cpus: int, stack: ExitStack) -> None:
    """A cluster of processes on this machine: on loopback, without pages; ``stack`` ends it.

    Raises:
        EngineError: it does not start.
    """
    from ray._private import ray_constants

    # Ray takes 127.0.0.1 for what can be reached from elsewhere, unless it is as on a Mac.
    with (
        settings({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        _patched(ray_constants, "ENABLE_RAY_CLUSTER", False),
    ):
        _init(
            ray,
            stack,
            "Ray could not be started on this machine",
            address="local",
            num_cpus=max(num_cores(), num_cpus),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
        )


def _init(ray: Any, stack: ExitStack, complaint: str, **options: Any) -> None:
    """``ray.init``, without words of its own and with the signals left to us."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
    with settings(QUIET):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except Exception as error:  # noqa: BLE001 - of sockets, processes, versions
            _shut_down(ray)
            raise EngineError(f"{complaint}: {first_line(error)}") from None
        finally:
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
    stack.callback(_shut_down, ray)


def _shut_down(ray: Any) -> None:
    """Leave the cluster, or end the local one; do not wait for a head that has gone."""
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(CLOSE_S)


def _knock(address: str) -> None:
    """That something listens there: Ray itself would try for minutes, or end this process."""
    if not listens(*_host_and_port(address)):
        raise EngineError(f"nothing listens at {address}: is Ray running there?")


def _host_and_port(address: str) -> tuple[str, int]:
    parsed = urlsplit(address if "://" in address else f"gcs://{address}")
    try:
        port = parsed.port or (CLIENT_PORT if parsed.scheme == "ray" else HEAD_PORT)
    except ValueError:
        port = 0
    if parsed.scheme not in ("ray", "gcs") or not parsed.hostname or not port:
        raise JobError(
            f"address: {address!r} is no Ray cluster's; they look like ray://head:10001, or, on "
            "one of its machines, auto or head:6379"
        )
    return parsed.hostname, port


@contextmanager
def _patched(module: Any, name: str, value: object) -> Iterator[None]:
    """Another value for what Ray reads from the environment only when it is imported."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
