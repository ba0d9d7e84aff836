"""The Protocols of brokers and consumers, their messages and deliveries, and the URLs of queues."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from speechmill.errors import JobError

__all__ = [
    "DEAD_LETTERS",
    "Broker",
    "BrokerOptions",
    "Consumer",
    "Delivery",
    "Message",
    "QueueUrl",
    "parse_queue_url",
    "resolved",
]

DEAD_LETTERS = ".dead-letters"  # appended to a queue's name, it names the queue of its dead letters
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")  # what Kafka allows
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,15}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_SPACE = re.compile(r"[A-Za-z0-9._~%+-]+")  # a virtual host; anything else is percent-encoded

BrokerOptions = Mapping[str, str | int | float | bool]
"""Settings of the broker's client library by their own names. A value ``env:NAME`` is taken from
the environment, ``file:PATH`` from a file: secrets need not stand in a command line."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish. Where a queue has partitions, messages of one ``key`` share one."""

    body: bytes
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A received message. It is delivered again unless it is acknowledged.

    ``origin`` is its place in the queue, for people. ``redeliveries`` counts how often it was
    delivered before and not acknowledged, as far as the broker can tell. ``tag`` is the broker's.
    """

    message: Message
    origin: str
    redeliveries: int
    tag: object


class Consumer(Protocol):
    """Receives and acknowledges messages of one queue. Used from one thread."""

    @property
    def shares(self) -> bool:
        """Whether other consumers could process the messages that this one holds idle."""

    def receive(self, most: int, timeout_s: float) -> Sequence[Delivery]:
        """Receive up to ``most`` messages, as soon as there are some, or none after ``timeout_s``.

        Must be called every few seconds, also with ``most`` 0: it keeps the connection alive,
        follows other consumers that join and leave, and reconnects to a broker that was away.

        Raises:
            BrokerError: the broker refuses, or stays away.
        """

    def holds(self, delivery: Delivery) -> bool:
        """Whether a delivery is still ours: the broker has not given it to another consumer, and
        will not deliver it again."""

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """Note that work on deliveries begins. ``Delivery.redeliveries`` counts this, where the
        broker itself does not count."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries; those no longer ours are skipped.

        A broker that goes away meanwhile is no error: it delivers them again.
        """

    def lag(self) -> int | None:
        """Count the messages that wait for us or are held by us, as far as the broker tells."""

    def is_empty(self) -> bool:
        """Whether no message waits or is held by us or, where the broker tells, by our group."""

    def close(self) -> None:
        """Return the messages that are held, and leave. Must not raise."""


class Broker(Protocol):
    """One queue of a broker, with its queue of dead letters."""

    @property
    def url(self) -> str:
        """The queue's URL, without secrets."""

    def prepare(self, partitions: int = 12) -> None:
        """Create the queue and that of its dead letters, unless they exist; with ``partitions``,
        where the broker has such.

        Raises:
            BrokerError: the broker cannot be reached, or refuses.
        """

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages, and return once the broker has confirmed all of them.

        Raises:
            BrokerError: it has not; some may be there all the same.
        """

    def consume(self, group: str, *, whole: bool = False) -> Consumer:
        """Start a consumer of ``group``; with ``whole``, one that reads the whole queue alone.

        Raises:
            BrokerError: the broker cannot be reached, or refuses.
        """

    def dead_letters(self) -> Broker:
        """Open the queue of dead letters."""

    def close(self) -> None:
        """Close the connections for publishing. Must not raise."""


@dataclass(frozen=True, slots=True)
class QueueUrl:
    """A parsed URL of a queue. ``address`` is ``host:port``, for Kafka several, with commas.

    ``space`` is the virtual host of AMQP. ``user`` and ``password`` are secrets.
    """

    scheme: str
    address: str
    queue: str
    space: str = "/"
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The URL without user and password."""
        space = "" if self.space == "/" else f"{self.space}/"
        return f"{self.scheme}://{self.address}/{space}{self.queue}"

    def named(self, queue: str) -> QueueUrl:
        """Name another queue of the same broker."""
        return QueueUrl(self.scheme, self.address, queue, self.space, self.user, self.password)


def parse_queue_url(url: str, schemes: Sequence[str]) -> QueueUrl:
    """Parse a queue's URL, such as ``kafka://broker:9092/recordings``.

    A URL that is written wrongly may have its password anywhere: errors show the scheme alone.

    Raises:
        JobError: the scheme is unknown, or host or queue are missing or no such names.
    """
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in schemes:
        shown = f"{scheme}://" if colon and _SCHEME.fullmatch(scheme) else "a URL without scheme"
        raise JobError(
            f"{shown} is no queue that Speechmill knows: write kafka://host:9092/TOPIC or "
            "amqp://host:5672/QUEUE"
        )
    has_user = scheme.startswith("amqp")
    shown = f"the {scheme}:// URL of the queue"
    form = f"write {scheme}://host/QUEUE"
    if has_user:
        form += f"; in {scheme}://user:password@host/VHOST/QUEUE all other signs as %40, %2F, …"
    address, _, path = rest.partition("/")
    user_info, at, address = address.rpartition("@")
    names = path.strip("/").split("/")
    if at and not has_user:
        raise JobError(
            f"{shown}: user and password do not belong into it; give "
            "--broker-option sasl.username=… and --broker-option sasl.password=env:NAME"
        )
    if not address or not names[0]:
        raise JobError(f"{shown} names no broker or no queue: {form}")
    if len(names) > (2 if has_user else 1):
        raise JobError(f"{shown} has too many parts: {form}")
    if not _NAME.fullmatch(names[-1]) or not _SPACE.fullmatch(names[0]):
        raise JobError(
            f"{shown}: what stands behind the host is no name for a queue (letters, digits, '.', "
            f"'_' and '-', 200 at most): {form}"
        )
    for one in address.split(","):
        host = _HOST.fullmatch(one)
        if host is None or int(host[1] or 0) > 65_535:
            raise JobError(f"{shown}: a host is no name, or has no number for its port: {form}")
    user, _, password = user_info.partition(":")
    space = unquote(names[0]) if len(names) > 1 else "/"
    return QueueUrl(scheme, address, names[-1], space, unquote(user), unquote(password))


def resolved(options: BrokerOptions) -> dict[str, str]:
    """Resolve settings to text: those that name a variable or a file are read.

    Errors do not show what is named: a password may begin with "env:", too.

    Raises:
        JobError: there is no such variable, or the file cannot be read.
    """
    found = {}
    for name, value in options.items():
        kind, _, where = str(value).partition(":")
        if kind == "env" and where:
            if where not in os.environ:
                raise JobError(
                    f"broker_option {name}: the variable that it names is not in the environment"
                )
            found[name] = os.environ[where]
        elif kind == "file" and where:
            try:
                found[name] = Path(where).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no text"
                raise JobError(
                    f"broker_option {name}: the file that it names cannot be read: {why}"
                ) from None
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found
