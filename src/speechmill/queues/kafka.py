"""Kafka, by librdkafka (confluent-kafka).

What is settled is an offset for each partition: all before it is done. A worker settles in any
order, so ``Watermark`` keeps what is still out (``kafka_partitions.py``).

Kafka does not count how often it has delivered a message. We do, in the metadata of the offset that
is committed: who begins to work behind an offset that was begun before, and has not moved since,
knows that its predecessor went away without a word. With brokers that forget this metadata each
delivery is as the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from speechmill.errors import BrokerError, JobError, MissingExtraError
from speechmill.queues.base import (
    DEAD_LETTERS,
    BrokerOptions,
    Delivery,
    Message,
    QueueUrl,
    resolved,
)
from speechmill.queues.kafka_partitions import Partition, begun_before

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
    from confluent_kafka import Message as Fetched

__all__ = ["KafkaBroker"]

CONNECT_S = 10.0
CONFIRM_S = 60.0
AWAY_S = 300.0  # a broker that stays away for so long is given up
LOOK_EVERY_S = 2.0  # at the whole group, while nothing comes
ANSWER_S = 5.0
JOIN_S = 5.0

# The user's own settings go before these.
_CONSUMER: Final = {
    "auto.offset.reset": "earliest",
    # A worker that was killed is missed soon. Heartbeats come from a thread of librdkafka's.
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "1500",
    # Those that stay go on while others come and go.
    "partition.assignment.strategy": "cooperative-sticky",
    # Memory is bounded, whatever waits.
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

# librdkafka writes its own log to standard error unless it is given a logger.
_log = logging.getLogger("speechmill.librdkafka")
_log.addHandler(logging.NullHandler())


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
        self._url, self._given = url, options
        self._options = resolved(options)
        if taken := sorted(self._options.keys() & {*_OURS, "group.id", "bootstrap.servers"}):
            raise JobError(
                f"broker_option {taken[0]}: Speechmill sets this itself (--group, and the URL, "
                "say what can be said)"
            )
        self._producer: Producer | None = None

    @property
    def url(self) -> str:
        """See ``Broker``."""
        return self._url.url

    def _settings(self, *defaults: Mapping[str, str]) -> dict[str, str]:
        settings = {"client.id": "speechmill", "bootstrap.servers": self._url.address}
        for some in defaults:
            settings |= some
        return {**settings, **self._options}

    def prepare(self, partitions: int = 12) -> None:
        """See ``Broker``. A new topic has so many partitions; that of dead letters has one."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        heard: list[KafkaError] = []
        admin = _made(AdminClient, {**self._settings(), "error_cb": heard.append}, _log)
        try:
            there = admin.list_topics(timeout=CONNECT_S).topics
        except KafkaException as error:
            # Why, only the callback is told: a refused password looks like a broker that is away.
            why = next((e.str() for e in heard if "brokers are down" not in e.str()), _why(error))
            raise BrokerError(f"{self.url} cannot be reached: {why}") from None
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
            with _mapped(f"the topic {name} cannot be made", allow="TOPIC_ALREADY_EXISTS"):
                made.result()
        deadline = time.monotonic() + CONNECT_S
        while not wanted.keys() <= admin.list_topics(timeout=CONNECT_S).topics.keys():
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.url}: the broker does not show the topic it has made")
            time.sleep(0.05)

    def publish(self, messages: Sequence[Message]) -> None:
        """See ``Broker``."""
        from confluent_kafka import Producer

        if self._producer is None:
            self._producer = _made(Producer, self._settings(_PRODUCER), _log)
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
                except BufferError:  # its own queue is full
                    self._producer.poll(0.1)
                    if time.monotonic() > deadline:
                        raise self._unconfirmed(len(messages)) from None
            self._producer.poll(0)
        left = self._producer.flush(max(0.0, deadline - time.monotonic()))
        if left or refused:
            self._producer.purge()
            self._producer = None
            why = f" ({refused[0].str()})" if refused else ""
            raise self._unconfirmed(left + len(refused), why)

    def _unconfirmed(self, count: int, why: str = "") -> BrokerError:
        return BrokerError(f"{self.url}: the broker has not confirmed {count} messages{why}")

    def consume(self, group: str, *, whole: bool = False) -> KafkaConsumer:
        """See ``Broker``."""
        settings = self._settings(_CONSUMER, _OURS, {"group.id": group})
        return KafkaConsumer(self._url, settings, whole=whole)

    def dead_letters(self) -> KafkaBroker:
        """See ``Broker``."""
        return KafkaBroker(self._url.named(f"{self._url.queue}{DEAD_LETTERS}"), self._given)

    def close(self) -> None:
        """See ``Broker``."""
        self._producer = None


class KafkaConsumer:
    """A member of a consumer group; with ``whole``, a reader of all partitions that is in none."""

    shares = False

    def __init__(self, url: QueueUrl, settings: Mapping[str, str], *, whole: bool) -> None:
        from confluent_kafka import Consumer

        self._topic, self._url = url.queue, url.url
        self._parts: dict[int, Partition] = {}
        self._ended: set[int] = set()  # partitions that were read to their end
        self._stash: list[Delivery] = []
        self._paused: set[int] = set()
        self._joined = False
        self._looked_at, self._others_empty = 0.0, False
        self._trouble: KafkaError | None = None
        self._away_since: float | None = None
        self._consumer: Consumer = _made(Consumer, {**settings, "error_cb": self._hear_error}, _log)
        if whole:
            self._assign_all()
        else:
            with _mapped(f"{self._url} cannot be read"):
                self._consumer.subscribe(
                    [self._topic],
                    on_assign=self._assigned,
                    on_revoke=self._revoked,
                    on_lost=self._revoked,
                )

    # Callbacks: within ``consume``, in its thread; errors may come in others.

    def _hear_error(self, error: KafkaError) -> None:
        from confluent_kafka import KafkaError

        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._away_since = self._away_since or time.monotonic()
        elif error.fatal() or error.code() == KafkaError._AUTHENTICATION:
            self._trouble = error

    def _assigned(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._joined = True
        if partitions:
            self._add(partitions)

    def _add(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        from confluent_kafka import KafkaException

        try:
            known = self._consumer.committed(list(partitions), timeout=ANSWER_S)
        except KafkaException:  # where to begin librdkafka asks by itself
            known = list(partitions)
        for one in known:
            begun, end = begun_before(getattr(one, "metadata", None))
            self._parts[one.partition] = Partition(
                one.offset if one.offset >= 0 else None, begun, end
            )
            self._ended.discard(one.partition)
        return known

    def _revoked(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            self._parts.pop(one.partition, None)
            self._ended.discard(one.partition)
            self._paused.discard(one.partition)

    def _assign_all(self) -> None:
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        with _mapped(f"{self._url} cannot be read"):
            numbers = self._numbers()
            known = self._add([TopicPartition(self._topic, n) for n in numbers])
            self._consumer.assign(
                [
                    TopicPartition(
                        self._topic, k.partition, k.offset if k.offset >= 0 else OFFSET_BEGINNING
                    )
                    for k in known
                ]
            )
        self._joined = True

    def _numbers(self) -> list[int]:
        topic = self._consumer.list_topics(self._topic, timeout=CONNECT_S).topics[self._topic]
        if topic.error is not None:
            raise BrokerError(f"{self._url}: {topic.error.str()}")
        return sorted(topic.partitions)

    def receive(self, most: int, timeout_s: float) -> Sequence[Delivery]:
        """See ``Consumer``."""
        if most and self._stash:
            taken, self._stash = self._stash[:most], self._stash[most:]
            return [d for d in taken if self.holds(d)]
        self._pause(most == 0)
        with _mapped(f"{self._url} cannot be read"):
            fetched = self._consumer.consume(max(1, most), timeout_s)
        deliveries = [d for f in fetched if (d := self._delivery(f)) is not None]
        self._raise_trouble()
        if not most:  # fetched before the pause
            self._stash += deliveries
            return []
        return deliveries

    def _pause(self, wanted: bool) -> None:
        """Take nothing, but go on calling: who does not call is taken for dead."""
        from confluent_kafka import KafkaException, TopicPartition

        numbers = self._parts.keys() - self._paused if wanted else set(self._paused)
        if not numbers:
            return
        partitions = [TopicPartition(self._topic, n) for n in numbers]
        try:
            if wanted:
                self._consumer.pause(partitions)
            else:
                self._consumer.resume(partitions)
        except KafkaException:  # one of them was taken from us this moment
            return
        self._paused = set(self._parts) if wanted else set()

    def _delivery(self, fetched: Fetched) -> Delivery | None:
        from confluent_kafka import KafkaError

        number, offset, error = fetched.partition(), fetched.offset(), fetched.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and number is not None:
                self._ended.add(number)
                self._away_since = None
            elif error.fatal() or not error.retriable():
                self._trouble = self._trouble or error
            return None
        if number is None or offset is None or (part := self._parts.get(number)) is None:
            return None
        self._away_since = None
        self._ended.discard(number)
        part.marks.take(offset)
        found: Any = fetched.headers() or ()
        headers = {name: _text(value) for name, value in found}
        message = Message(fetched.value() or b"", _text(fetched.key()), headers)
        origin = f"{self._topic}[{number}]@{offset}"
        return Delivery(message, origin, part.deaths(offset), (part, number, offset))

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise BrokerError(f"{self._url}: {self._trouble.str()}")
        if self._away_since is not None and time.monotonic() - self._away_since > AWAY_S:
            raise BrokerError(f"{self._url}: the broker has been away for {AWAY_S:.0f} s")

    def holds(self, delivery: Delivery) -> bool:
        """See ``Consumer``."""
        part, number, _ = _tag(delivery)
        return self._parts.get(number) is part

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``."""
        self._commit({_tag(d)[1] for d in deliveries if self.holds(d)})

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer``."""
        ours = [_tag(d) for d in deliveries if self.holds(d)]
        for part, _, offset in ours:
            part.marks.settle(offset)
        self._commit({number for _, number, _ in ours})

    def _commit(self, numbers: set[int], *, wait: bool = False) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        offsets = []
        for number in numbers:
            part = self._parts[number]
            low, metadata = part.marks.low, part.metadata()
            if low is not None and ((low, metadata) != part.told or wait):
                offsets.append(TopicPartition(self._topic, number, low, metadata))
                part.told = low, metadata
        if not offsets:
            return
        try:
            # What is lost of it is delivered again, and found done.
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            _log.info("commit of offsets: %s", error)

    def lag(self) -> int | None:
        """See ``Consumer``: of the partitions that are ours."""
        from confluent_kafka import KafkaException, TopicPartition

        waiting = 0
        for number, part in self._parts.items():
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, number), cached=True
                )
            except KafkaException:
                continue
            if high >= 0:
                settled = part.marks.low
                waiting += max(0, high - (low if settled is None else settled))
        return waiting

    def is_empty(self) -> bool:
        """See ``Consumer``. Others' partitions are empty when their offsets are at the end."""
        if not self._joined or self._stash or any(p.marks.num_out for p in self._parts.values()):
            return False
        return self._parts.keys() <= self._ended and self._others_are_empty()

    def _others_are_empty(self) -> bool:
        from confluent_kafka import KafkaException, TopicPartition

        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return self._others_empty
        self._looked_at, self._others_empty = time.monotonic(), False
        try:
            others = [
                TopicPartition(self._topic, n) for n in self._numbers() if n not in self._parts
            ]
            known = self._consumer.committed(others, timeout=ANSWER_S) if others else []
            for one in known:
                low, high = self._consumer.get_watermark_offsets(one, timeout=ANSWER_S)
                if (one.offset if one.offset >= 0 else low) < high:
                    return False
        except (KafkaException, BrokerError):
            return False
        self._others_empty = True
        return True

    def close(self) -> None:
        """See ``Consumer``."""
        from confluent_kafka import KafkaException

        # Some brokers (Tansu) wait for ever for a member that leaves while it joins.
        deadline = time.monotonic() + JOIN_S
        with suppress(BrokerError):
            while not self._joined and time.monotonic() < deadline:
                self.receive(0, 0.1)
        self._commit(set(self._parts), wait=True)
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            _log.info("closing: %s", error)


def _tag(delivery: Delivery) -> tuple[Partition, int, int]:
    tag: Any = delivery.tag
    return tag  # type: ignore[no-any-return]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _made(of_type: Any, settings: Mapping[str, Any], logger: logging.Logger) -> Any:
    """A client of librdkafka's.

    Raises:
        JobError: it does not take a setting.
    """
    from confluent_kafka import KafkaException

    try:
        return of_type(dict(settings), logger=logger)
    except (KafkaException, TypeError, ValueError) as error:
        raise JobError(f"broker_option: {_why(error)}") from None


@contextmanager
def _mapped(what: str, allow: str = "") -> Iterator[None]:
    """Errors of librdkafka as ours. ``allow`` is the name of one that is fine."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        reason = error.args[0] if error.args else None
        if not (allow and getattr(reason, "name", str)() == allow):
            raise BrokerError(f"{what}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """What librdkafka says, in a line."""
    reason = error.args[0] if error.args else error
    said = getattr(reason, "str", None)
    return " ".join(str(said() if callable(said) else error).split())
