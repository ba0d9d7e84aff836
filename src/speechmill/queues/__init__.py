"""Queues that feed a dataset. A new broker is one file, and one line in ``BROKERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from speechmill.queues.base import Broker, BrokerOptions, QueueUrl, parse_queue_url

__all__ = ["BROKERS", "open_broker"]


def _kafka(url: QueueUrl, options: BrokerOptions) -> Broker:
    from speechmill.queues.kafka import KafkaBroker

    return KafkaBroker(url, options)


def _rabbitmq(url: QueueUrl, options: BrokerOptions) -> Broker:
    from speechmill.queues.rabbitmq import RabbitBroker

    return RabbitBroker(url, options)


def _memory(url: QueueUrl, options: BrokerOptions) -> Broker:
    from speechmill.queues.fake import MemoryBroker

    return MemoryBroker(url, options)


BROKERS: Final[Mapping[str, Callable[[QueueUrl, BrokerOptions], Broker]]] = MappingProxyType(
    {"kafka": _kafka, "amqp": _rabbitmq, "amqps": _rabbitmq, "memory": _memory}
)
"""A URL's scheme → a function that imports the broker's class and makes one."""


def open_broker(url: str, options: BrokerOptions | None = None) -> Broker:
    """Open the queue at a URL: ``kafka://…``, ``amqp://…``, ``amqps://…``, ``memory://NAME/QUEUE``.

    Opening sends no request.

    Raises:
        JobError: the URL or an option is wrong.
        MissingExtraError: the client library is not installed.
    """
    parsed = parse_queue_url(url, tuple(BROKERS))
    return BROKERS[parsed.scheme](parsed, options or {})
