"""Kafka, by librdkafka (confluent-kafka).

Kafka settles an offset per partition: all messages before it are done. A worker settles in any
order, so ``Watermark`` tracks the ones in hand (``kafka_partitions.py``).

Kafka does not count deliveries of a message. We do, in the metadata of the committed offset: a
consumer that begins behind an offset that was begun before, and has not moved since, knows that its
predecessor died. With brokers that drop this metadata each delivery counts as the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from speechmill.errors import BrokerError, JobError, MissingExtraError
from speechmill.queues.base import DEAD_LETTERS, BrokerOptions, Message, QueueUrl, resolved
from speechmill.queues.kafka_client import CONNECT_S, create_client, map_errors, why

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

    from speechmill.queues.kafka_consumer import KafkaConsumer

__all__ = ["KafkaBroker"]

CONFIRM_S = 60.0  # for all messages of one call; past librdkafka's own limit, delivery.timeout.ms

# The user's own settings override these.
_CONSUMER: Final = {
    "auto.offset.reset": "earliest",
    # A killed worker is noticed soon. Heartbeats come from a thread of librdkafka.
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "1500",
    # Consumers that stay go on while others join and leave.
    "partition.assignment.strategy": "cooperative-sticky",
    # Bounds memory, however many messages wait.
    "queued.max.messages.kbytes": "8192",
    "queued.min.messages": "2000",
}
_OURS: Final = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "enable.partition.eof": "true",
    "allow.auto.create.topics": "false",
}
_PRODUCER: Final = {
    "acks": "all",
    "enable.idempotence": "true",
    "linger.ms": "20",
    "delivery.timeout.ms": "50000",
}


class KafkaBroker:
    """``kafka://host:9092,host2:9092/TOPIC``. Options are librdkafka's, by their own names.

    Raises:
        MissingExtraError: confluent-kafka is not installed.
        JobError: an option is none of librdkafka's, or ours to set.
    """

    def __init__(self, url: QueueUrl, options: BrokerOptions) -> None:
        try:
            import confluent_kafka  # noqa: F401
        except ImportError:
            raise MissingExtraError("a queue on Kafka", "kafka") from None
        self.url = url.url
        self._url, self._given = url, options
        self._options = resolved(options)
        if taken := sorted(self._options.keys() & {*_OURS, "group.id", "bootstrap.servers"}):
            raise JobError(
                f"broker_option {taken[0]}: Speechmill sets this itself (--group, and the URL, "
                "say what can be said)"
            )
        self._producer: Producer | None = None

    def _settings(self, *defaults: Mapping[str, str]) -> dict[str, str]:
        settings = {"client.id": "speechmill", "bootstrap.servers": self._url.address}
        for some in defaults:
            settings |= some
        return {**settings, **self._options}

    def prepare(self, partitions: int = 12) -> None:
        """See ``Broker``. A new topic has ``partitions``; that of dead letters has one."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        heard: list[KafkaError] = []
        admin = create_client(AdminClient, {**self._settings(), "error_cb": heard.append})
        try:
            there = admin.list_topics(timeout=CONNECT_S).topics
        except KafkaException as error:
            # Why, only the callback is told: a refused password looks like a broker that is away.
            told = (e.str() for e in heard if "brokers are down" not in e.str())
            raise BrokerError(f"{self.url} cannot be reached: {next(told, why(error))}") from None
        wanted = {self._url.queue: partitions, f"{self._url.queue}{DEAD_LETTERS}": 1}
        if self._url.queue.endswith(DEAD_LETTERS):
            wanted = {self._url.queue: 1}
        missing = [
            NewTopic(name, num_partitions=count, replication_factor=-1)
            for name, count in wanted.items()
            if name not in there
        ]
        if not missing:
            return
        for name, made in admin.create_topics(missing, operation_timeout=CONNECT_S).items():
            with map_errors(f"the topic {name} cannot be made", allow="TOPIC_ALREADY_EXISTS"):
                made.result()
        deadline = time.monotonic() + CONNECT_S
        while not wanted.keys() <= admin.list_topics(timeout=CONNECT_S).topics.keys():
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.url}: the broker does not show the topic it has made")
            time.sleep(0.05)

    def publish(self, messages: Sequence[Message]) -> None:
        """See ``Broker``."""
        from confluent_kafka import KafkaException, Producer

        if self._producer is None:
            self._producer = create_client(Producer, self._settings(_PRODUCER))
        refused: list[KafkaError] = []

        def confirmed(error: KafkaError | None, _: object) -> None:
            if error is not None:
                refused.append(error)

        deadline = time.monotonic() + CONFIRM_S
        for message in messages:
            while True:
                try:
                    self._producer.produce(
                        self._url.queue,
                        value=message.body,
                        key=message.key or None,
                        headers=dict(message.headers),
                        on_delivery=confirmed,
                    )
                    break
                except KafkaException as error:  # larger than message.max.bytes
                    refused.append(error.args[0])
                    break
                except BufferError:  # its own queue is full
                    self._producer.poll(0.1)
                    if time.monotonic() > deadline:
                        raise self._unconfirmed(len(messages)) from None
            self._producer.poll(0)
        left = self._producer.flush(max(0.0, deadline - time.monotonic()))
        if left or refused:
            self._producer.purge()
            self._producer = None
            reason = f" ({refused[0].str()})" if refused else ""
            raise self._unconfirmed(left + len(refused), reason)

    def _unconfirmed(self, count: int, reason: str = "") -> BrokerError:
        return BrokerError(f"{self.url}: the broker has not confirmed {count} messages{reason}")

    def consume(self, group: str, *, whole: bool = False) -> KafkaConsumer:
        """See ``Broker``."""
        from speechmill.queues.kafka_consumer import KafkaConsumer

        settings = self._settings(_CONSUMER, _OURS, {"group.id": group})
        return KafkaConsumer(self._url, settings, whole=whole)

    def dead_letters(self) -> KafkaBroker:
        """See ``Broker``."""
        return KafkaBroker(self._url.named(f"{self._url.queue}{DEAD_LETTERS}"), self._given)

    def close(self) -> None:
        """See ``Broker``."""
        self._producer = None
