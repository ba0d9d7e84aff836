"""The consumer of a Kafka topic."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Fetched

from speechmill.errors import BrokerError
from speechmill.queues.base import Delivery, Message, QueueUrl
from speechmill.queues.kafka_client import CONNECT_S, create_client, log, map_errors
from speechmill.queues.kafka_partitions import Partition, begun_before

__all__ = ["KafkaConsumer"]

AWAY_S = 300.0  # a broker that stays away this long is given up
GROUP_CHECK_EVERY_S = 2.0  # whether the others' partitions are empty, which takes requests
ANSWER_S = 5.0  # for one answer about offsets
JOIN_S = 5.0  # that closing waits for a consumer to join its group


class KafkaConsumer:
    """A member of a consumer group; with ``whole``, a reader of all partitions that is in none."""

    shares = False

    def __init__(self, url: QueueUrl, settings: Mapping[str, str], *, whole: bool) -> None:
        self._topic, self._url = url.queue, url.url
        self._parts: dict[int, Partition] = {}
        self._ended: set[int] = set()  # partitions that were read to their end
        self._stash: list[Delivery] = []
        self._paused: set[int] = set()
        self._joined = False
        self._group_checked_at, self._all_empty = 0.0, False
        self._trouble: KafkaError | None = None
        self._away_since: float | None = None
        self._consumer: Consumer = create_client(Consumer, {**settings, "error_cb": self._on_error})
        if whole:
            self._assign_all()
        else:
            with map_errors(f"{self._url} cannot be read"):
                self._consumer.subscribe(
                    [self._topic],
                    on_assign=self._on_assign,
                    on_revoke=self._on_revoke,
                    on_lost=self._on_revoke,
                )

    # Callbacks: within ``consume``, in its thread; errors may come in others.

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._away_since = self._away_since or time.monotonic()
        elif error.fatal() or error.code() == KafkaError._AUTHENTICATION:
            self._trouble = error

    def _on_assign(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._joined = True
        if partitions:
            self._add(partitions)

    def _add(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        try:
            known = self._consumer.committed(list(partitions), timeout=ANSWER_S)
        except KafkaException:  # librdkafka then asks where to begin by itself
            known = list(partitions)
        for one in known:
            begun, end = begun_before(getattr(one, "metadata", None))
            base = one.offset if one.offset >= 0 else None
            self._parts[one.partition] = Partition(base, begun, end)
            self._ended.discard(one.partition)
            self._all_empty = False
        return known

    def _on_revoke(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            self._parts.pop(one.partition, None)
            self._ended.discard(one.partition)
            self._paused.discard(one.partition)

    def _assign_all(self) -> None:
        with map_errors(f"{self._url} cannot be read"):
            numbers = self._partition_numbers()
            known = self._add([TopicPartition(self._topic, n) for n in numbers])
            begin = [(k.partition, k.offset if k.offset >= 0 else OFFSET_BEGINNING) for k in known]
            self._consumer.assign([TopicPartition(self._topic, n, offset) for n, offset in begin])
        self._joined = True

    def _partition_numbers(self) -> list[int]:
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
        with map_errors(f"{self._url} cannot be read"):
            fetched = self._consumer.consume(max(1, most), timeout_s)
        deliveries = [d for f in fetched if (d := self._delivery(f)) is not None]
        self._raise_trouble()
        if not most:  # fetched before the pause
            self._stash += deliveries
            return []
        return deliveries

    def _pause(self, wanted: bool) -> None:
        """Pause or resume all partitions. A paused consumer must poll, or it counts as dead."""
        numbers = self._parts.keys() - self._paused if wanted else set(self._paused)
        if not numbers:
            return
        partitions = [TopicPartition(self._topic, n) for n in numbers]
        try:
            if wanted:
                self._consumer.pause(partitions)
            else:
                self._consumer.resume(partitions)
        except KafkaException:  # one of them was revoked this moment
            return
        self._paused = set(self._parts) if wanted else set()

    def _delivery(self, fetched: Fetched) -> Delivery | None:
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
        self._all_empty = False
        part.marks.take(offset)
        headers = {name: _text(value) for name, value in _headers(fetched)}
        message = Message(fetched.value() or b"", _text(fetched.key()), headers)
        origin = f"{self._topic}[{number}]@{offset}"
        return Delivery(message, origin, part.redeliveries(offset), (part, number, offset))

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
            # Messages of a lost commit are delivered again, and found done.
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.info("commit of offsets: %s", error)

    def lag(self) -> int | None:
        """See ``Consumer``: of the partitions that are ours."""
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
        """See ``Consumer``. A partition is empty when its offset is at its end."""
        if not self._joined or self._stash or any(p.marks.num_out for p in self._parts.values()):
            return False
        return self._all_are_empty()

    def _all_are_empty(self) -> bool:
        if time.monotonic() - self._group_checked_at < GROUP_CHECK_EVERY_S:
            return self._all_empty
        self._group_checked_at, self._all_empty = time.monotonic(), False
        # Ours are asked about as well: that one has ended is told once, and may be lost in a pause.
        offsets = {n: p.marks.low for n, p in self._parts.items() if n not in self._ended}
        try:
            numbers = set(self._partition_numbers()) - self._parts.keys()
            others = [TopicPartition(self._topic, n) for n in numbers]
            known = self._consumer.committed(others, timeout=ANSWER_S) if others else []
            offsets |= {one.partition: one.offset if one.offset >= 0 else None for one in known}
            for number, offset in offsets.items():
                one = TopicPartition(self._topic, number)
                low, high = self._consumer.get_watermark_offsets(one, timeout=ANSWER_S)
                if (low if offset is None else offset) < high:
                    return False
        except (KafkaException, BrokerError):
            return False
        self._all_empty = True
        return True

    def close(self) -> None:
        """See ``Consumer``."""
        # Some brokers (Tansu) wait for ever for a member that leaves while it joins.
        deadline = time.monotonic() + JOIN_S
        with suppress(BrokerError):
            while not self._joined and time.monotonic() < deadline:
                self.receive(0, 0.1)
        self._commit(set(self._parts), wait=True)
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.info("closing: %s", error)


def _tag(delivery: Delivery) -> tuple[Partition, int, int]:
    return cast("tuple[Partition, int, int]", delivery.tag)


def _headers(fetched: Fetched) -> Sequence[tuple[str, Any]]:
    """A message's headers; none where the client cannot read them, as a name that is not UTF-8."""
    try:
        found: Any = fetched.headers()
    except Exception:  # noqa: BLE001 - whatever it is (a SystemError), the message is there
        return ()
    return found or ()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
