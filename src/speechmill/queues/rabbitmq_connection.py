"""Connections to RabbitMQ: their parameters, and their errors."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from speechmill.errors import BrokerError, JobError
from speechmill.queues.base import QueueUrl

if TYPE_CHECKING:
    from pika import BlockingConnection, ConnectionParameters

__all__ = ["CONFIRM_S", "close", "connected", "lost_errors", "parameters_of", "why"]

PORT, TLS_PORT = 5672, 5671
CONNECT_S = 10.0  # for a broker that does not answer
CONFIRM_S = 60.0  # for a broker that confirms nothing, or blocks publishers
HEARTBEAT_S = 60  # RabbitMQ's own default
_OPTIONS: Final = ("heartbeat", "ca", "certificate", "key", "user", "password", "verify")


def parameters_of(url: QueueUrl, options: dict[str, str]) -> ConnectionParameters:
    """Parse a URL and options to the parameters of connections.

    Raises:
        JobError: an option is unknown, or makes no sense.
    """
    import pika

    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise JobError(
            f"broker_option {unknown[0]!r}: for {url.scheme}:// there are {', '.join(_OPTIONS)}"
        )
    host, colon, port = url.address.rpartition(":")
    tls = url.scheme == "amqps"
    try:
        return pika.ConnectionParameters(
            host=(host if colon else url.address).strip("[]"),
            port=int(port) if colon else TLS_PORT if tls else PORT,
            virtual_host=url.space,
            credentials=pika.PlainCredentials(
                options.get("user", url.user or "guest"),
                options.get("password", url.password or "guest"),
            ),
            heartbeat=int(options.get("heartbeat", HEARTBEAT_S)),
            blocked_connection_timeout=CONFIRM_S,
            socket_timeout=CONNECT_S,
            stack_timeout=2 * CONNECT_S,
            ssl_options=_tls(url, options) if tls else None,
            client_properties={"connection_name": "speechmill"},
        )
    except (TypeError, ValueError):  # whose text may hold the value
        raise JobError("broker_option heartbeat: it must be a whole number of seconds") from None


def _tls(url: QueueUrl, options: dict[str, str]) -> Any:
    import pika

    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
        if options.get("verify") == "false":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if "certificate" in options:
            context.load_cert_chain(options["certificate"], options.get("key"))
    except (OSError, ssl.SSLError) as error:
        raise JobError(f"broker_option: the certificates cannot be read: {error}") from None
    return pika.SSLOptions(context, url.address.rpartition(":")[0] or url.address)


def connected(parameters: ConnectionParameters, url: str) -> BlockingConnection:
    """Open a blocking connection.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us in.
    """
    from pika import BlockingConnection
    from pika.exceptions import (
        AMQPConnectionError,
        AuthenticationError,
        ProbableAccessDeniedError,
        ProbableAuthenticationError,
    )

    from speechmill.queues.rabbitmq_frames import TolerantConnection

    try:
        return BlockingConnection(parameters, _impl_class=TolerantConnection)
    except (AuthenticationError, ProbableAuthenticationError):
        raise BrokerError(
            f"{url}: the broker does not accept user and password: give --broker-option "
            "user=… and --broker-option password=env:NAME"
        ) from None
    except ProbableAccessDeniedError:
        raise BrokerError(
            f"{url}: the broker does not let this user into the virtual host "
            f"{parameters.virtual_host!r}"
        ) from None
    except (AMQPConnectionError, OSError) as error:
        raise BrokerError(f"{url} cannot be reached: {why(error)}") from None


def close(connection: BlockingConnection | None) -> None:
    """Close a connection, if there is one. Does not raise."""
    with suppress(Exception):
        if connection is not None and connection.is_open:
            connection.close()


def lost_errors() -> tuple[type[BaseException], ...]:
    """List the errors that a lost connection raises."""
    from pika.exceptions import AMQPError

    return (AMQPError, OSError)


def why(error: object) -> str:
    """Return pika's message in one line; its errors wrap one another."""
    while isinstance(error, BaseException):
        inner = next((a for a in error.args if isinstance(a, BaseException)), None)
        inner = inner or getattr(error, "exception", None)
        if inner is None:
            break
        error = inner
    text = " ".join(str(error).split())
    return text or type(error).__name__
