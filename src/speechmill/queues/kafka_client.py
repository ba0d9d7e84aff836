"""Clients of librdkafka: how they are created, and what their errors say."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from speechmill.errors import BrokerError, JobError

__all__ = ["CONNECT_S", "create_client", "log", "map_errors", "why"]

CONNECT_S = 10.0  # for one answer of a broker that is there
SECRET_CHARS = 4  # shorter values, such as "all" and "1", would be cut out of other words

# librdkafka writes its own log to standard error unless it is given a logger.
log = logging.getLogger("speechmill.librdkafka")
log.addHandler(logging.NullHandler())


def create_client(of_type: Any, settings: Mapping[str, Any]) -> Any:
    """Create a client of librdkafka.

    Raises:
        JobError: it does not accept a setting.
    """
    from confluent_kafka import KafkaException

    try:
        return of_type(dict(settings), logger=log)
    except (KafkaException, TypeError, ValueError) as error:
        said = why(error)
        # librdkafka quotes values, trimmed, secrets among them.
        said = re.sub(r'"([^"]*)"', lambda m: m[0] if m[1] in settings else '"…"', said)
        for value in sorted((str(v).strip() for v in settings.values()), key=len, reverse=True):
            if len(value) >= SECRET_CHARS:
                said = said.replace(value, "…")
        raise JobError(f"broker_option: {said}") from None


@contextmanager
def map_errors(what: str, allow: str = "") -> Iterator[None]:
    """Map errors of librdkafka to ours. ``allow`` is the name of one that is ignored.

    Raises:
        BrokerError: any other error; ``what`` says what was being done.
    """
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        reason = error.args[0] if error.args else None
        if not (allow and getattr(reason, "name", str)() == allow):
            raise BrokerError(f"{what}: {why(error)}") from None


def why(error: Exception) -> str:
    """Return librdkafka's message in one line."""
    reason = error.args[0] if error.args else error
    said = getattr(reason, "str", None)
    return " ".join(str(said() if callable(said) else error).split())
