"""Dask clusters: reaching one, starting one on this machine, and what workers it has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from speechmill.errors import EngineError, JobError
from speechmill.runners.cluster import GOES_ON, first_line

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["connect", "start_here", "workers_of"]

CONNECT_S = 10.0
ANSWER_S = 20.0  # for the scheduler to say what workers there are
CLOSE_S = 5.0
NEVER = "10000 days"


def workers_of(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """What the scheduler says of each of its workers, by address.

    Raises:
        EngineError: it has gone.
    """
    try:
        if client.status != "running":
            raise OSError("the connection has ended")  # noqa: TRY301 - as when it ends now
        told = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER_S)
    except (OSError, TimeoutError, CancelledError, RuntimeError) as error:
        raise EngineError(f"the Dask scheduler has gone ({first_line(error)}); {GOES_ON}") from None
    workers: Mapping[str, Mapping[str, Any]] = told["workers"]
    return workers


def connect(address: str, stack: ExitStack) -> Client:
    """A client of a cluster: for ``auto`` this process's own, where it has one; ``stack`` closes
    any other.

    Raises:
        JobError: the address makes no sense.
        EngineError: no scheduler answers there.
    """
    from dask import config
    from distributed import Client, default_client

    if address == "auto":
        with suppress(ValueError):
            return default_client()
        address = config.get("scheduler-address", None)
        if address is None:
            raise JobError(
                "address: auto needs a Dask client in this process, or the scheduler's address in "
                "DASK_SCHEDULER_ADDRESS or in Dask's settings (scheduler-address)"
            )
    _silence(stack)
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False, name="speechmill")
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(
            f"address: {address!r} is no Dask scheduler's ({first_line(error)}); they look like "
            "tcp://scheduler:8786"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever answers there, it is no scheduler of ours
        raise EngineError(
            f"no Dask scheduler answers at {address}: {first_line(error)}; is it running, and of "
            "about the same version as here?"
        ) from None
    stack.callback(client.close, timeout=CLOSE_S)
    return client


def start_here(workers: int, resources: Mapping[str, float], stack: ExitStack) -> Client:
    """Processes on this machine: on loopback, without pages or a limit to their memory.

    Raises:
        EngineError: they do not start.
    """
    from dask import config
    from distributed import Client, LocalCluster

    _silence(stack)
    # One that has died is started anew. On a busy machine that takes longer than the time after
    # which Dask's cluster else forgets it for good, until none are left.
    stack.enter_context(config.set({"distributed.deploy.lost-worker-timeout": NEVER}))
    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # else a fixed port
            silence_logs=logging.CRITICAL,
            memory_limit=0,
            resources=dict(resources),
        )
        stack.callback(cluster.close, timeout=CLOSE_S)
        client = Client(cluster, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # noqa: BLE001 - of sockets, processes, settings
        raise EngineError(
            f"Dask could not be started on this machine: {first_line(error)}"
        ) from None
    stack.callback(client.close, timeout=CLOSE_S)
    return client


def _silence(stack: ExitStack) -> None:
    """Keep off the terminal what Dask's loggers say of deaths and ends; they become our errors."""
    for handler in logging.getLogger("distributed").handlers:
        stack.callback(handler.setLevel, handler.level)
        handler.setLevel(logging.CRITICAL + 1)
