"""Shards on Ray: a cluster that runs, or worker processes on this machine.

A worker is an actor, a process of its own that has one task at a time. Ray neither restarts it nor
runs its tasks again: one that has died is replaced here, and attempts are counted in one place.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from speechmill.errors import EngineError, JobError, MissingExtraError, WorkerDiedError
from speechmill.machine import num_cores
from speechmill.records import ShardReport
from speechmill.runners.base import AnyJob
from speechmill.runners.cluster import GOES_ON, NO_WORKERS_S, ClusterRunner, first_line, settings
from speechmill.runners.ray_clusters import QUIET, Head, connect, start_here
from speechmill.runners.wire import perform, report_from_text, task_to_text
from speechmill.runners.work import Task, run_task

if TYPE_CHECKING:
    from ray import ObjectRef

__all__ = ["RayRunner"]

LOOK_EVERY_S = 0.25
COUNT_EVERY_S = 5.0
START_FAILURES = 3
STOP_S = 8.0  # for running tasks to commit what they have


class RayRunner(ClusterRunner["ObjectRef"]):
    """Runs shards on Ray.

    Where this process has called ``ray.init`` that cluster is used, and left as it is. Else the job
    says: ``address`` is a cluster's (``ray://head:10001``; on one of its machines ``auto`` or
    ``host:6379``); None is ``workers`` processes here.

    Args:
        work: what a worker does with a task.

    Raises:
        MissingExtraError: ray is not installed.
        JobError: from ``run``, the address or an option makes no sense.
        EngineError: from ``run``, the cluster cannot be reached, or has gone, or starts no workers.
    """

    def __init__(self, *, work: Callable[..., ShardReport] = run_task) -> None:
        with settings(QUIET):
            try:
                import ray  # noqa: F401
            except ImportError:
                raise MissingExtraError("the engine ray", "ray") from None
        super().__init__(lambda job, most: _start(job, most, work))


class _Worker:
    """An actor: a process that does one task at a time, and hears meanwhile that it is to stop."""

    def __init__(self, work: Callable[..., ShardReport]) -> None:
        self._work, self._stop = work, threading.Event()

    def ready(self) -> None:
        """Return as soon as the process runs."""

    def perform(self, text: str) -> str:
        return perform(text, partial(self._work, stop=self._stop.is_set))

    def give_up(self) -> None:
        self._stop.set()


class _Ray:
    """Ray as an ``Engine``. Actors are begun as there is room; tasks go to those that run."""

    def __init__(
        self,
        job: AnyJob,
        most: int,
        *,
        needs: Mapping[str, Any],
        cores: int,
        ours: ExitStack,
        work: Callable[..., ShardReport],
    ) -> None:
        import ray

        self._ray: Any = ray
        self._most = min(most, job.workers or most)
        self._wanted = self._most if job.workers else 0
        self._needs, self._cores, self._ours = needs, cores, ours
        self._work = work
        self._class: Any = ray.remote(_Worker).options(
            max_restarts=0, max_task_retries=0, max_concurrency=3, **needs
        )
        self._starting: dict[ObjectRef, Any] = {}
        self._idle: list[Any] = []
        self._at: dict[ObjectRef, Any] = {}
        self._head = Head(ray)
        self._looked_at = self._counted_at = -COUNT_EVERY_S
        self._start_failures = 0
        self._last_worker_at = time.monotonic()

    def slots(self) -> int:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            with _mapped():
                self._hire()
            self._looked_at = now
        if self._idle or self._at:
            self._last_worker_at = now
        elif now - self._last_worker_at > NO_WORKERS_S:
            raise EngineError(
                f"Ray has started no worker for {NO_WORKERS_S / 60:.0f} minutes: one needs "
                f"{_written(self._needs)}, the cluster has {_written(self._resources())}"
            )
        return len(self._idle) + len(self._at)

    def _hire(self) -> None:
        """Begin actors for which there is room, and take in those that have come to run."""
        self._head.check()
        if not self._wanted or time.monotonic() - self._counted_at > COUNT_EVERY_S:
            if not self._wanted or self._wanted < self._most:
                capacity = self._head.asked(lambda: _capacity(self._ray, self._needs))
                self._wanted = min(self._most, max(1, capacity))
            self._counted_at = time.monotonic()
        while len(self._idle) + len(self._at) + len(self._starting) < self._wanted:
            worker = self._head.asked(lambda: self._class.remote(self._work))
            self._starting[worker.ready.remote()] = worker
        if not self._starting:
            return
        begun, _ = self._ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        for ref in begun:
            worker = self._starting.pop(ref)
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                self._start_failures += 1
                if self._start_failures >= START_FAILURES:
                    raise EngineError(
                        f"a Ray worker cannot be started: {_last_line(error)} (all nodes need the "
                        "same Speechmill and Ray as here)"
                    ) from None
            else:
                self._start_failures = 0
                self._idle.append(worker)

    def submit(self, task: Task) -> ObjectRef:
        worker = self._idle.pop()
        with _mapped():
            handle = worker.perform.remote(task_to_text(replace(task, cores=self._cores)))
        self._at[handle] = worker
        return handle

    def finished(self, handles: Sequence[ObjectRef], timeout_s: float) -> Sequence[ObjectRef]:
        with _mapped():
            self._head.check()
            done, rest = self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)
            if done and rest:
                more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
                done += more
        return list(done)

    def result(self, handle: ObjectRef) -> ShardReport:
        exceptions = self._ray.exceptions
        worker = self._at.pop(handle)
        with _mapped():
            try:
                text = self._ray.get(handle)
            except (
                exceptions.RayActorError,
                exceptions.WorkerCrashedError,
                exceptions.NodeDiedError,
                exceptions.OutOfMemoryError,
                exceptions.ObjectLostError,
            ) as error:
                raise WorkerDiedError(_why_died(error)) from None
        self._idle.append(worker)
        return report_from_text(text)

    def cancel(self, handles: Sequence[ObjectRef]) -> None:
        if not handles or self._head.gone:
            return
        with suppress(Exception):
            for handle in handles:
                self._at[handle].give_up.remote()
            self._ray.wait(list(handles), num_returns=len(handles), timeout=STOP_S)

    def close(self) -> None:
        if not self._head.gone:
            for worker in (*self._idle, *self._at.values(), *self._starting.values()):
                with suppress(Exception):
                    self._ray.kill(worker)
        with suppress(Exception):
            self._ours.close()

    def _resources(self) -> Mapping[str, Any]:
        with suppress(Exception):
            return {
                name: amount
                for name, amount in self._ray.cluster_resources().items()
                if not name.startswith(("node:", "object_store"))
            }
        return {}


def _start(job: AnyJob, most: int, work: Callable[..., ShardReport]) -> _Ray:
    """Ray as the job says, for at most so many tasks."""
    import ray

    needs = _needs(job)
    with ExitStack() as stack:
        if ray.is_initialized():
            if job.address not in (None, "auto"):
                raise JobError(
                    f"address: this process is connected to Ray already, so {job.address} cannot "
                    "be had; call ray.shutdown() first, or leave the address out"
                )
        elif job.address is not None:
            connect(ray, job.address, stack)
        else:
            workers = min(job.workers or max(1, int(num_cores() // needs.get("num_cpus", 1))), most)
            start_here(ray, math.ceil(workers * needs.get("num_cpus", 1)), stack)
            if needs.get("num_gpus"):
                workers = min(workers, _gpu_workers(ray, needs["num_gpus"]))
            needs = {"num_cpus": max(1, num_cores() // workers), **needs}
            job = job.model_copy(update={"workers": workers})
        needs = {"num_cpus": 1, **needs}
        cores = max(1, int(needs["num_cpus"]))
        return _Ray(job, most, needs=needs, cores=cores, ours=stack.pop_all(), work=work)


def _needs(job: AnyJob) -> dict[str, Any]:
    """What an actor takes of the cluster: Ray's own options, and resources by their names."""
    needs: dict[str, Any] = {}
    for name, value in job.worker_option.items():
        if isinstance(value, str) != (name == "accelerator_type"):
            raise JobError(
                f"worker_option: {name}={value!r}: Ray's options are numbers, such as num_cpus=4 "
                "num_gpus=1 memory=8e9, but for accelerator_type"
            )
        if name in ("num_cpus", "num_gpus", "memory", "accelerator_type"):
            needs[name] = value
        else:
            needs.setdefault("resources", {})[name] = value
    return needs


def _capacity(ray: Any, needs: Mapping[str, Any]) -> int:
    """How many such actors the nodes that are there could hold, were they free."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    asked = {names[k]: v for k, v in needs.items() if k in names and v}
    asked.update({k: v for k, v in needs.get("resources", {}).items() if v})
    asked = asked or {"CPU": 1}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(k, 0) // v) for k, v in asked.items()) for node in nodes)


def _gpu_workers(ray: Any, num_gpus: float) -> int:
    there = ray.cluster_resources().get("GPU", 0)
    if there < num_gpus:
        raise JobError(
            f"worker_option: num_gpus={num_gpus}, but Ray finds {there:g} GPUs on this machine"
        )
    return int(there // num_gpus)


@contextmanager
def _mapped() -> Iterator[None]:
    """Ray's errors as ours."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise EngineError(
            f"a Ray worker could not do a task: {_last_line(error)} (all nodes need the same "
            "Speechmill and Ray as here)"
        ) from None
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise EngineError(f"the Ray cluster has gone ({first_line(error)}); {GOES_ON}") from None


def _why_died(error: Exception) -> str:
    """Why an actor has died, in one line."""
    text = str(error)
    pid = next((line.strip() for line in text.splitlines() if line.strip().startswith("pid:")), "")
    name = f"its process ({pid.replace(':', '')})" if pid else "its process"
    if any(words in text for words in ("low on memory", "memory pressure", "NODE_OUT_OF_MEMORY")):
        return f"Ray ended {name}: its machine was out of memory"
    return f"{name} was killed, or was out of memory"


def _last_line(error: Exception) -> str:
    """What a traceback ends with."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1].strip()[:200]


def _written(amounts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={amount}" for name, amount in amounts.items()) or "nothing"
