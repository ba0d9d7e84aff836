"""Units of ``repartition`` on Dask: a cluster that runs, or worker processes on this machine.

A unit's files are the same whoever writes them, and when. So Dask may begin a unit anew where its
worker has died, as it does by itself, and nothing has to be counted here.
"""

from __future__ import annotations

import time
import uuid
from asyncio import run_coroutine_threadsafe
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import ExitStack, suppress
from threading import Event
from typing import TYPE_CHECKING

from speechmill.errors import EngineError, MissingExtraError, SpeechmillError
from speechmill.export.files import LOOK_AROUND_S, Unit, write_unit
from speechmill.machine import num_cores
from speechmill.runners.cluster import GOES_ON, NO_WORKERS_S, first_line
from speechmill.runners.dask_clusters import connect, start_here, workers_of
from speechmill.runners.work import keep_memory

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["on_dask"]


def on_dask(
    client: Client | None = None, *, address: str | None = None, workers: int = 0
) -> Callable[[Sequence[Unit], Callable[[], bool]], Iterator[int]]:
    """What writes units on Dask, for ``repartition``'s ``run``.

    Args:
        client: a client of the cluster to use; neither is closed.
        address: without a client, the scheduler's, or ``auto`` as for a build; None is ``workers``
            processes here.
        workers: how many processes are started here (0: one a core); on a cluster, how many units
            are written at the same time at most (0: one a thread).

    Raises:
        MissingExtraError: distributed is not installed.
        EngineError: from what is returned, the scheduler cannot be reached or has gone, has no
            workers, or they die of a unit again and again.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise MissingExtraError("the engine dask", "dask") from None

    def run(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
        if not units:
            return
        with ExitStack() as stack:
            there = client
            if there is None and address is not None:
                there = connect(address, stack)
            elif there is None:
                there = start_here(min(workers or num_cores(), len(units)), {}, stack)
            yield from _run(there, units, stop, workers)

    return run


def _run(
    client: Client, units: Sequence[Unit], stop: Callable[[], bool], most: int
) -> Iterator[int]:
    waiting = deque(units)
    running: set[Future] = set()
    one_is_done = Event()
    last_worker_at = time.monotonic()
    try:
        while (waiting or running) and not stop():
            workers = workers_of(client)
            if workers:
                last_worker_at = time.monotonic()
            elif time.monotonic() - last_worker_at > NO_WORKERS_S:
                raise EngineError(
                    f"the Dask scheduler has had no workers for {NO_WORKERS_S / 60:.0f} minutes: "
                    f"start some; {GOES_ON}"
                )
            room = sum(int(worker["nthreads"]) for worker in workers.values())
            room = min(room, most) if most else room
            while waiting and len(running) < room:
                key = f"speechmill-{uuid.uuid4().hex}"
                handle = client.submit(_write, waiting.popleft(), key=key, pure=False)
                handle.add_done_callback(lambda _: one_is_done.set())
                running.add(handle)
            one_is_done.wait(LOOK_AROUND_S)
            one_is_done.clear()
            done = {handle for handle in running if handle.done()}
            running -= done
            yield sum(_rows(client, handle) for handle in done)
    finally:
        with suppress(Exception):
            client.cancel(list(running))


def _write(unit: Unit) -> int:
    """A unit, in a worker."""
    keep_memory()
    return write_unit(unit)


def _rows(client: Client, handle: Future) -> int:
    """The rows of a unit that is done."""
    from distributed import KilledWorker

    # Not handle.result(timeout): a wait that Dask gives up leaves tasks behind that are heard of.
    answer = run_coroutine_threadsafe(handle._result(), client.loop.asyncio_loop)
    while not wait([answer], LOOK_AROUND_S).done:  # its worker has died with it: Dask begins anew
        workers_of(client)
    try:
        return int(answer.result())
    except SpeechmillError:
        raise
    except TimeoutError:
        raise EngineError(f"Dask could not fetch a result; {GOES_ON}") from None
    except KilledWorker as error:
        raise EngineError(
            f"Dask's workers die of this work again and again ({first_line(error)}): they were "
            f"killed, or need more memory; {GOES_ON}"
        ) from None
    except CancelledError:
        raise EngineError(f"the Dask scheduler has gone, or was restarted; {GOES_ON}") from None
    except Exception as error:  # noqa: BLE001 - such as a worker that cannot import us
        workers_of(client)
        raise EngineError(
            f"a Dask worker could not write files: {first_line(error)} (the scheduler and the "
            "workers need the same Speechmill and Dask as here)"
        ) from None
