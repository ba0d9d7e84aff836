"""Dead letters: messages that could not be processed, with the reason; read and retry them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from speechmill.queues.base import Broker, Consumer, Delivery, Message

__all__ = ["DeadLetter", "dead_letter", "read_dead_letters", "retry_dead_letters"]

GROUP = "speechmill-dead-letters"  # the consumer group that reads them
MAX_MESSAGES = 500  # received at a time
IDLE_S = 1.0  # without a message, until the queue counts as read …
BUSY_S = 30.0  # … or so long, where the broker says that more wait
MAX_LETTER_BYTES = 768 * 1024  # Kafka's brokers take 1 MiB by default, RabbitMQ's more
MAX_HEADER = 2_000  # characters of one of ours
MAX_HEADERS = 48 * 1024  # bytes of the message's own: AMQP has one frame, of 128 KiB, for all
PREFIX = "speechmill-"  # of our headers


def dead_letter(delivery: Delivery, headers: Mapping[str, str], max_bytes: int) -> Message:
    """Make the dead letter of a message: the message as received, with ``headers`` that say why.

    One of more than ``max_bytes``, or with more headers than a broker would take with ours, is cut:
    ``origin`` says where it lies whole, ``cut`` how many bytes its body had.
    """
    message = delivery.message
    told = {**headers, "origin": delivery.origin}
    told["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kept = {k: v for k, v in message.headers.items() if not k.startswith(PREFIX)}
    body, key = message.body, message.key
    texts = (key, *kept, *kept.values())
    header_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if header_bytes > MAX_HEADERS or header_bytes + len(body) > max_bytes:
        told["cut"] = str(len(body))
        body, key, kept = body[: max_bytes // 2], key[:MAX_HEADER], {}
    for name, text in told.items():
        if text:
            shown = (
                text[: min(MAX_HEADER, max_bytes // 4)].encode("utf-8", "backslashreplace").decode()
            )
            kept[f"{PREFIX}{name}"] = shown
    return Message(body, key, kept)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter. ``what`` is the recording's name, or the beginning of the message. One that
    ``is_cut`` has not the whole message, which lies at ``origin``."""

    what: str
    stage: str
    error: str
    reason: str
    attempts: int
    time: str
    origin: str
    is_cut: bool
    message: Message

    @staticmethod
    def of(message: Message) -> DeadLetter:
        """Parse a message of the queue of dead letters."""
        told = {
            name.removeprefix(PREFIX): text
            for name, text in message.headers.items()
            if name.startswith(PREFIX) or name == "reason"
        }
        shown = message.body[:80].decode("utf-8", "replace")
        attempts = told.get("attempts", "")
        return DeadLetter(
            what=told.get("file_name") or shown,
            stage=told.get("stage", ""),
            error=told.get("error", ""),
            reason=told.get("reason", ""),
            attempts=int(attempts) if attempts.isdecimal() else 1,
            time=told.get("time", ""),
            origin=told.get("origin", ""),
            is_cut="cut" in told,
            message=message,
        )


def read_dead_letters(broker: Broker) -> list[DeadLetter]:
    """Read the dead letters of a queue, none twice; they stay in it.

    A worker that is killed between sending a letter and acknowledging its message sends it twice.

    Raises:
        BrokerError: the broker cannot be reached, or refuses.
    """
    found: dict[tuple[bytes, str], DeadLetter] = {}

    def read(_: Consumer, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            letter = DeadLetter.of(delivery.message)
            found[delivery.message.body, letter.error] = letter

    _receive_all(broker, read)
    return list(found.values())


def retry_dead_letters(broker: Broker) -> tuple[int, int]:
    """Publish the dead letters of a queue into it again, each once.

    Returns how many, and how many stay because they were cut.

    Raises:
        BrokerError: the broker cannot be reached, or refuses; what was not confirmed stays.
    """
    sent: set[bytes] = set()
    cut: set[str] = set()

    def send(consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        news: dict[bytes, Message] = {}
        whole = []
        for delivery in deliveries:
            letter = DeadLetter.of(delivery.message)
            if letter.is_cut:
                cut.add(letter.origin)
                continue
            whole.append(delivery)
            body = delivery.message.body
            headers = {
                name: text
                for name, text in delivery.message.headers.items()
                if not name.startswith((PREFIX, "x-")) and name != "reason"
            }
            if body not in sent:
                news[body] = Message(body, delivery.message.key, headers)
        broker.publish(list(news.values()))
        sent.update(news)
        consumer.ack(whole)

    _receive_all(broker, send)
    return len(sent), len(cut)


def _receive_all(broker: Broker, received: Callable[[Consumer, Sequence[Delivery]], None]) -> None:
    """Call ``received`` with all messages of the queue of dead letters, some at a time."""
    dead = broker.dead_letters()
    dead.prepare()
    consumer = dead.consume(GROUP, whole=True)
    try:
        taken: list[Delivery] = []
        quiet_since = time.monotonic()
        while (quiet_s := time.monotonic() - quiet_since) < IDLE_S or (
            quiet_s < BUSY_S and (consumer.lag() or 0) > sum(map(consumer.holds, taken))
        ):
            if some := consumer.receive(MAX_MESSAGES, 0.2):
                quiet_since = time.monotonic()
                received(consumer, some)
                taken += some
    finally:
        consumer.close()
        dead.close()
