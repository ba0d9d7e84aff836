"""RabbitMQ, by pika.

Messages are received over a blocking connection, in the worker's own thread, which also answers the
broker's heartbeats. They are published over a connection with an event loop: thousands are in
flight before the first is confirmed.

A quorum queue counts deliveries of a message. When the connection is lost, all messages that were
not acknowledged are delivered again, to any consumer.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from speechmill.errors import BrokerError, MissingExtraError
from speechmill.queues.base import (
    DEAD_LETTERS,
    BrokerOptions,
    Delivery,
    Message,
    QueueUrl,
    resolved,
)
from speechmill.queues.rabbitmq_connection import (
    CONFIRM_S,
    close,
    connected,
    lost_errors,
    parameters_of,
    why,
)

if TYPE_CHECKING:
    from pika import BasicProperties, BlockingConnection, ConnectionParameters, SelectConnection
    from pika.adapters.blocking_connection import BlockingChannel
    from pika.channel import Channel
    from pika.frame import Method
    from pika.spec import Basic

__all__ = ["RabbitBroker"]

AWAY_S = 300.0  # a broker that stays away this long is given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0  # between attempts to reconnect, doubling
UNCONFIRMED = 5_000  # published messages in flight: it bounds the memory of client and broker
CLOSE_S = 3.0  # that a publisher waits for the broker to close
MAX_PREFETCH = 10_000  # AMQP's own limit is 65,535
COUNT_EVERY_S = 0.5  # the broker is asked no more often how many messages wait
LONGEST_WORK_MS = 12 * 3600 * 1000  # on a message: hours of audio on a slow machine

# Quorum queues survive the restart of a broker or node. We limit deliveries ourselves; the broker's
# limit is far above ours, and messages that it removes go to the dead letters as well. Only 3.12
# and later know the timeout of a consumer.
_QUEUE: Final = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 1000,
    "x-consumer-timeout": LONGEST_WORK_MS,
}
_LOOKED_AT: Final = {"x-delivery-limit": 1_000_000_000}  # dead letters: each look is a delivery

_log = logging.getLogger(__name__)
# pika writes each lost connection to its log, with a traceback.
logging.getLogger("pika").addHandler(logging.NullHandler())
logging.getLogger("pika").propagate = False


class RabbitBroker:
    """``amqp://host:5672/QUEUE``, ``amqps://host/VHOST/QUEUE``.

    Options: ``user`` and ``password`` (or in the URL; guest where there are none), ``heartbeat`` in
    seconds; for TLS ``ca``, ``certificate`` and ``key`` (files), ``verify=false`` to trust any
    host.

    Raises:
        MissingExtraError: pika is not installed.
        JobError: an option is unknown, or makes no sense.
    """

    def __init__(self, url: QueueUrl, options: BrokerOptions) -> None:
        try:
            import pika  # noqa: F401
        except ImportError:
            raise MissingExtraError("a queue on RabbitMQ", "rabbitmq") from None
        self.url = url.url
        self._url, self._given = url, options
        self._parameters = parameters_of(url, resolved(options))
        self._publisher: _Publisher | None = None

    def prepare(self, partitions: int = 12) -> None:  # noqa: ARG002 - there are none
        """See ``Broker``. An existing queue is used as it is."""
        connection = connected(self._parameters, self.url)
        try:
            name, dead = self._url.queue, f"{self._url.queue}{DEAD_LETTERS}"
            if name.endswith(DEAD_LETTERS):
                self._declare(connection, name, _LOOKED_AT)
                return
            self._declare(connection, dead, _LOOKED_AT)
            to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
            self._declare(connection, name, to_dead)
        finally:
            close(connection)

    def _declare(
        self, connection: BlockingConnection, name: str, more: Mapping[str, str | int]
    ) -> None:
        from pika.exceptions import AMQPError, ChannelClosedByBroker

        try:
            with suppress(ChannelClosedByBroker):
                connection.channel().queue_declare(name, passive=True)
                return
            connection.channel().queue_declare(name, durable=True, arguments={**_QUEUE, **more})
        except (AMQPError, OSError) as error:
            raise BrokerError(
                f"{self.url}: the queue {name} cannot be made: {why(error)}"
            ) from None

    def publish(self, messages: Sequence[Message]) -> None:
        """See ``Broker``."""
        for attempt in (1, 2):
            fresh = self._publisher is None
            self._publisher = self._publisher or _Publisher(self._parameters, self._url)
            try:
                self._publisher.publish(messages)
            except BrokerError:
                self._publisher = None
                if fresh or attempt == 2:
                    raise
            else:
                return

    def consume(self, group: str, *, whole: bool = False) -> RabbitConsumer:  # noqa: ARG002
        """See ``Broker``. The consumers of a queue are one group, and share it."""
        return RabbitConsumer(self._url, self._parameters, whole=whole)

    def dead_letters(self) -> RabbitBroker:
        """See ``Broker``."""
        return RabbitBroker(self._url.named(f"{self._url.queue}{DEAD_LETTERS}"), self._given)

    def close(self) -> None:
        """See ``Broker``."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None


class _Publisher:
    """A connection for publishing. Its loop runs while messages wait for confirmation."""

    def __init__(self, parameters: ConnectionParameters, url: QueueUrl) -> None:
        from pika import SelectConnection

        self._queue, self._url = url.queue, url.url
        self._waiting: deque[Message] = deque()
        self._out: OrderedDict[int, None] = OrderedDict()  # delivery tags, in order
        self._last_tag = 0
        self._channel: Channel | None = None
        self._why = ""
        self._connection: SelectConnection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=lambda _, error: self._lost(error),
            on_close_callback=lambda _, error: self._lost(error),
        )

    def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        self._waiting.extend(messages)
        loop = self._connection.ioloop
        timer = loop.call_later(CONFIRM_S, lambda: self._lost("no answer in time"))
        if self._channel is not None:
            self._send_waiting()
        if not self._why:
            loop.start()
        loop.remove_timeout(timer)
        if self._why:
            count = len(self._waiting) + len(self._out)
            self._connection.ioloop.stop()
            raise BrokerError(
                f"{self._url}: the broker has not confirmed {count} messages: {self._why}"
            )

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _, error: self._lost(error))
        channel.add_on_return_callback(lambda *_: self._lost(f"there is no queue {self._queue}"))
        channel.confirm_delivery(self._settled, callback=lambda _: self._send_waiting())

    def _send_waiting(self) -> None:
        from pika import BasicProperties

        channel = self._channel
        if channel is None or not channel.is_open:
            return
        while self._waiting and len(self._out) < UNCONFIRMED:
            message = self._waiting.popleft()
            properties = BasicProperties(
                delivery_mode=2,  # kept on disk
                content_type="application/json",
                headers={"key": message.key, **message.headers},
            )
            channel.basic_publish("", self._queue, message.body, properties, mandatory=True)
            self._last_tag += 1
            self._out[self._last_tag] = None

    def _settled(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        if frame.method.NAME != "Basic.Ack":
            self._lost("it refuses them")
        elif not multiple:
            self._out.pop(tag, None)
        while multiple and self._out and next(iter(self._out)) <= tag:
            self._out.popitem(last=False)
        if self._waiting and len(self._out) < UNCONFIRMED // 2:
            self._send_waiting()
        if not (self._waiting or self._out):
            self._connection.ioloop.stop()

    def _lost(self, error: object) -> None:
        self._why = self._why or why(error)
        self._connection.ioloop.stop()

    def close(self) -> None:
        self._connection.ioloop.call_later(CLOSE_S, self._connection.ioloop.stop)
        with suppress(Exception):
            self._connection.close()
            self._connection.ioloop.start()


class RabbitConsumer:
    """Receives messages; reconnects when the broker was away."""

    shares = True

    def __init__(
        self, url: QueueUrl, parameters: ConnectionParameters, *, whole: bool = False
    ) -> None:
        self._whole = whole
        self._queue, self._url, self._parameters = url.queue, url.url, parameters
        self._connection: BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._held: dict[int, Delivery] = {}
        self._inbox: deque[Delivery] = deque()
        self._subscribed = ""
        self._prefetch = 0
        self._away_since: float | None = None
        self._try_at, self._pause_s = 0.0, FIRST_PAUSE_S
        self._count, self._counted_at = 0, -COUNT_EVERY_S
        self._connect()

    def _connect(self) -> BlockingConnection:
        self._connection = connection = connected(self._parameters, self._url)
        self._channel = connection.channel()
        self._channel.add_on_cancel_callback(lambda _: self._inbox.clear())
        self._subscribed, self._prefetch = "", 0
        self._away_since, self._pause_s = None, FIRST_PAUSE_S
        return connection

    def receive(self, most: int, timeout_s: float) -> Sequence[Delivery]:
        """See ``Consumer``."""
        connection = self._connection or self._reconnected()
        if connection is None:
            time.sleep(timeout_s)
            return []
        try:
            if most:
                self._set_prefetch(len(self._held) + most)
            connection.process_data_events(0 if self._inbox and most else timeout_s)
        except lost_errors() as error:
            self._lost(error)
            return []
        return [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]

    def _set_prefetch(self, most: int) -> None:
        """Let the broker send up to ``most`` unacknowledged messages. Changing it means subscribing
        anew, so small differences are ignored; and what is under way then is given back, so that
        who reads the whole queue does it once."""
        most = MAX_PREFETCH if self._whole else most
        if self._channel is None or most <= self._prefetch <= 2 * most:
            return
        if self._subscribed:
            self._channel.basic_cancel(self._subscribed)
        self._prefetch = min(most, MAX_PREFETCH)
        self._channel.basic_qos(prefetch_count=self._prefetch)
        self._subscribed = self._channel.basic_consume(self._queue, self._received)

    def _received(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        # Anybody's: a name may be bytes, a count a list.
        headers = {k: v for k, v in (properties.headers or {}).items() if isinstance(k, str)}
        deaths = headers.get("x-delivery-count")
        deaths = deaths if type(deaths) is int else int(bool(method.redelivered))
        texts = {k: v for k, v in headers.items() if isinstance(v, str) and k != "key"}
        if "x-death" in headers:  # the broker has taken it out by itself
            texts.setdefault(
                "reason", f"the broker gave it up: {_dead_letter_reason(headers['x-death'])}"
            )
        message = Message(body, str(headers.get("key", "")), texts)
        tag = method.delivery_tag
        delivery = Delivery(message, f"{self._queue}#{tag}", deaths, tag)
        self._held[tag] = delivery
        self._inbox.append(delivery)

    def _reconnected(self) -> BlockingConnection | None:
        now = time.monotonic()
        if now < self._try_at:
            return None
        try:
            connection = self._connect()
        except BrokerError:
            if self._away_since is not None and now - self._away_since > AWAY_S:
                raise
            self._try_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            return None
        _log.info("%s: connected again", self._url)
        return connection

    def _lost(self, error: BaseException) -> None:
        """Give the connection up: all messages that are held will be delivered again."""
        _log.warning("%s: the connection was lost (%s); trying again", self._url, why(error))
        close(self._connection)
        self._connection = self._channel = None
        self._held.clear()
        self._inbox.clear()
        self._away_since = self._away_since or time.monotonic()
        self._try_at = time.monotonic() + self._pause_s

    def holds(self, delivery: Delivery) -> bool:
        """See ``Consumer``."""
        tag = delivery.tag
        return isinstance(tag, int) and self._held.get(tag) is delivery

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``: the broker counts."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``."""
        for delivery in deliveries:
            tag = delivery.tag
            if self._channel is None or not isinstance(tag, int) or not self.holds(delivery):
                continue
            try:
                self._channel.basic_ack(tag)
            except lost_errors() as error:
                self._lost(error)
                return
            del self._held[tag]

    def lag(self) -> int | None:
        """See ``Consumer``."""
        if self._channel is None:
            return None
        if time.monotonic() - self._counted_at > COUNT_EVERY_S:
            try:
                declared = self._channel.queue_declare(self._queue, passive=True)
            except lost_errors() as error:
                self._lost(error)
                return None
            self._count, self._counted_at = int(declared.method.message_count), time.monotonic()
        return self._count + len(self._held)

    def is_empty(self) -> bool:
        """See ``Consumer``. The broker does not tell what others hold."""
        return not self._held and self.lag() == 0

    def close(self) -> None:
        """See ``Consumer``."""
        close(self._connection)
        self._connection = self._channel = None


def _dead_letter_reason(deaths: object) -> str:
    first = deaths[0] if isinstance(deaths, list) and deaths else {}
    return str(first.get("reason", "")) if isinstance(first, dict) else ""
