"""Shards on Dask: a cluster that runs, or worker processes on this machine.

Each task is pinned to a worker process that has no other of ours. So a death is that of one task;
it shows when the process has left the scheduler's list; and Dask, which would otherwise begin a
lost task again by itself, has nowhere to do so: attempts are counted in one place.
"""

from __future__ import annotations

import threading
import time
import uuid
from asyncio import run_coroutine_threadsafe
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from speechmill.errors import EngineError, JobError, MissingExtraError, WorkerDiedError
from speechmill.machine import num_cores
from speechmill.records import ShardReport
from speechmill.runners.base import AnyJob
from speechmill.runners.cluster import GOES_ON, NO_WORKERS_S, ClusterRunner, first_line
from speechmill.runners.dask_clusters import connect, start_here, workers_of
from speechmill.runners.wire import perform, report_from_text, task_to_text
from speechmill.runners.work import Task, run_task

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskRunner"]

LOOK_EVERY_S = 0.25
STOP_S = 8.0  # for running tasks to commit what they have

_given_up: Final[set[str]] = set()  # in a worker: the runs whose tasks are to stop


class DaskRunner(ClusterRunner["Future"]):
    """Runs shards on Dask.

    Args:
        client: a client of the cluster to use; neither is closed. Without one, the job says:
            ``address`` is a scheduler's (``tcp://…``, ``tls://…``), or ``auto`` for this process's
            current client, or else what Dask's own settings name; None is ``workers`` processes
            here.
        work: what a worker does with a task.

    Raises:
        MissingExtraError: distributed is not installed.
        JobError: the client is an asynchronous one; from ``run``, the address or a resource makes
            no sense.
        EngineError: from ``run``, the scheduler cannot be reached, or has gone, or has no workers.
    """

    def __init__(
        self, client: Client | None = None, *, work: Callable[..., ShardReport] = run_task
    ) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise MissingExtraError("the engine dask", "dask") from None
        if client is not None and client.asynchronous:
            raise JobError("the Dask client is asynchronous: make one with asynchronous=False")
        super().__init__(lambda job, most: _start(job, most, client, work))


@dataclass(frozen=True, slots=True)
class _Process:
    """A worker process; one that takes a dead one's address has another directory."""

    address: str
    directory: str


class _Dask:
    """Dask as an ``Engine``. ``cores`` is each worker's share, None for as many as its threads."""

    def __init__(
        self,
        client: Client,
        job: AnyJob,
        *,
        needs: Mapping[str, float],
        cores: int | None,
        ours: ExitStack,
        work: Callable[..., ShardReport],
    ) -> None:
        self._client, self._cores, self._ours, self._work = client, cores, ours, work
        self._most, self._needs = job.workers, needs
        self._run_id = uuid.uuid4().hex
        self._there: Mapping[_Process, Mapping[str, Any]] = {}
        self._at: dict[Future, _Process] = {}
        self._one_is_done = threading.Event()
        self._looked_at = -LOOK_EVERY_S
        self._last_worker_at = time.monotonic()

    def slots(self) -> int:
        self._look()
        slots = len(self._usable() | (set(self._at.values()) & set(self._there)))
        now = time.monotonic()
        if slots or self._at:
            self._last_worker_at = now
        elif now - self._last_worker_at > NO_WORKERS_S:
            raise EngineError(self._why_none())
        return min(slots, self._most) if self._most else slots

    def submit(self, task: Task) -> Future:
        process = min(self._usable() - set(self._at.values()), key=lambda process: process.address)
        cores = self._cores or int(self._there[process]["nthreads"])
        handle = self._client.submit(
            _perform,
            task_to_text(replace(task, cores=cores)),
            self._run_id,
            self._work,
            key=f"speechmill-{uuid.uuid4().hex}",
            pure=False,
            retries=0,
            workers=[process.address],
            allow_other_workers=False,
            resources=self._needs or None,
        )
        handle.add_done_callback(lambda _: self._one_is_done.set())
        self._at[handle] = process
        return handle

    def finished(self, handles: Sequence[Future], timeout_s: float) -> Sequence[Future]:
        self._one_is_done.clear()
        if not any(handle.done() for handle in handles):
            self._one_is_done.wait(timeout_s)
        self._look()
        return [h for h in handles if h.done() or self._at[h] not in self._there]

    def result(self, handle: Future) -> ShardReport:
        process = self._at.pop(handle)
        try:
            return report_from_text(self._text(handle, process))
        finally:
            handle.release()

    def _text(self, handle: Future, process: _Process) -> str:
        """What came of a task, as ``wire`` has it; see ``result``."""
        from distributed import KilledWorker

        # Asked for once, and waited for elsewhere than in Dask: a wait that Dask gives up leaves
        # tasks in its client, of which asyncio says later that nobody has looked at their errors.
        answer = run_coroutine_threadsafe(handle._result(), self._client.loop.asyncio_loop)
        while not wait([answer], LOOK_EVERY_S).done:
            self._look()  # it may have died with the result
            if not handle.done() and process not in self._there:
                handle.cancel()
                raise WorkerDiedError(self._why_died(process))
        try:
            return str(answer.result())
        except TimeoutError as error:
            raise EngineError(f"Dask could not fetch a result: {first_line(error)}") from None
        except KilledWorker:
            raise WorkerDiedError(self._why_died(process)) from None
        except CancelledError:
            raise EngineError(f"the Dask scheduler has gone, or was restarted; {GOES_ON}") from None
        except Exception as error:  # noqa: BLE001 - such as a worker that cannot import us
            self._looked_at = -LOOK_EVERY_S
            self._look()  # that it is no fault of a scheduler that has just gone
            raise EngineError(
                f"a Dask worker could not begin a task: {first_line(error)} (the scheduler and "
                "the workers need the same Speechmill and Dask as here)"
            ) from None

    def cancel(self, handles: Sequence[Future]) -> None:
        if not handles:
            return
        with suppress(Exception):
            if self._client.status == "running":
                there = [p.address for h in handles if (p := self._at[h]) in self._there]
                self._client.run(_give_up, self._run_id, workers=there, wait=False)
                deadline = time.monotonic() + STOP_S
                while time.monotonic() < deadline and not all(h.done() for h in handles):
                    self._one_is_done.wait(LOOK_EVERY_S)
                    self._one_is_done.clear()
        with suppress(Exception):
            self._client.cancel(handles)
            for handle in handles:
                handle.release()

    def close(self) -> None:
        with suppress(Exception):
            self._ours.close()

    def _look(self) -> None:
        """See what workers there are, unless it was seen just now."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        seen = workers_of(self._client)
        self._there = {
            _Process(address, worker["local_directory"]): worker for address, worker in seen.items()
        }
        self._looked_at = time.monotonic()

    def _usable(self) -> set[_Process]:
        """Workers that take tasks and have the resources that are asked for."""
        return {
            process
            for process, worker in self._there.items()
            if worker["status"] == "running"
            and all(worker["resources"].get(k, 0) >= v for k, v in self._needs.items())
        }

    def _why_none(self) -> str:
        minutes = f"for {NO_WORKERS_S / 60:.0f} minutes"
        if not self._there:
            return f"the Dask scheduler has had no workers {minutes}: start some; {GOES_ON}"
        wanted = " ".join(f"{k}={v}" for k, v in self._needs.items())
        asked = f", or lack what was asked for ({wanted})" if wanted else ""
        return (
            f"none of Dask's {len(self._there)} workers has taken tasks {minutes}: they are paused "
            f"for want of memory, or leaving{asked}"
        )

    def _why_died(self, process: _Process) -> str:
        with suppress(Exception):
            for _, event in self._client.get_events("worker-restart-memory"):
                if event["worker"] == process.address:
                    used = f"{event['rss'] / 1e9:.1f} GB"
                    return f"Dask ended {process.address}: its memory limit was reached ({used})"
        return f"{process.address} was killed, or was out of memory"


def _perform(text: str, run_id: str, work: Callable[..., ShardReport]) -> str:
    """A task, in a worker."""
    return perform(text, partial(work, stop=lambda: run_id in _given_up))


async def _give_up(run_id: str) -> None:
    """Let the tasks of a run stop, in a worker; on its event loop, so that it is not waited for."""
    _given_up.add(run_id)


def _start(
    job: AnyJob, most: int, client: Client | None, work: Callable[..., ShardReport]
) -> _Dask:
    """Dask as the job says, for at most so many tasks."""
    needs = _resources(job)
    cores = None
    with ExitStack() as stack:
        if client is None and job.address is not None:
            client = connect(job.address, stack)
        elif client is None:
            workers = min(job.workers or num_cores(), most)
            client = start_here(workers, needs, stack)
            cores = max(1, num_cores() // workers)
        return _Dask(client, job, needs=needs, cores=cores, ours=stack.pop_all(), work=work)


def _resources(job: AnyJob) -> dict[str, float]:
    """What a task needs of its worker's ``--resources``."""
    needs: dict[str, float] = {}
    for name, value in job.worker_option.items():
        if isinstance(value, str):
            raise JobError(
                f"worker_option: {name}={value!r}: Dask's resources are numbers, such as GPU=1, "
                "and workers are started with them (dask worker --resources GPU=1)"
            )
        needs[name] = float(value)
    return needs
