"""PyTorch as an engine: devices, number formats, and one stretch of speech at a time.

Its threads, its random numbers and some switches of the libraries on top belong to the whole
process, so all computation here holds one lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, MissingExtraError, ModelError, did_you_mean
from speechmill.machine import num_cores

__all__ = ["TorchEngine", "one_thread_workers"]

# "auto" means the first.
_COMPUTE_TYPES: Final = {"cpu": ("float32",), "cuda": ("float16", "float32")}

_lock = threading.RLock()
_workers_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """Where a model runs: ``device`` is ``cpu``, ``cuda`` or ``cuda:1``; ``compute_type`` is
    ``float32`` or ``float16``."""

    device: str
    compute_type: str
    cpu_threads: int

    @staticmethod
    def place(
        device: str, compute_type: str, cpu_threads: int, *, what: str, extra: str
    ) -> TorchEngine:
        """Resolve ``auto`` and 0 on this machine.

        Args:
            device: auto, cpu, cuda or cuda:1.
            compute_type: auto, float32 or float16.
            cpu_threads: of PyTorch, for the whole process; 0 is one per core.
            what: what needs PyTorch, for errors.
            extra: the extra that brings PyTorch.

        Raises:
            JobError: there is no such device here, or it does not do the format.
            MissingExtraError: PyTorch is not installed.
        """
        try:
            import torch
        except ImportError:
            raise MissingExtraError(what, extra) from None

        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device == "auto":
            device = "cuda" if num_gpus else "cpu"
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", device)
        if match is None or (match[1] == "cpu" and match[2]):
            raise JobError(f"there is no device {device!r}; there are: auto, cpu, cuda, cuda:1, …")
        if match[1] == "cuda" and int(match[2] or 0) >= num_gpus:
            there = f"there are {num_gpus} of them" if num_gpus else "there is none"
            raise JobError(
                f"the device {device!r} is not here: PyTorch sees no such CUDA device ({there}); "
                "use the device 'cpu' or 'auto'"
            )
        supported = _COMPUTE_TYPES[match[1]]
        if compute_type not in ("auto", *supported):
            hint = did_you_mean(compute_type, supported)
            raise JobError(
                f"the compute type {compute_type!r} is not supported on {device!r} by {what}{hint} "
                f"there are: auto, {', '.join(sorted(supported))}"
            )
        threads = cpu_threads or num_cores()
        return TorchEngine(
            device, supported[0] if compute_type == "auto" else compute_type, threads
        )

    @property
    def dtype(self) -> Any:
        """The number format as PyTorch's."""
        import torch

        return {"float32": torch.float32, "float16": torch.float16}[self.compute_type]

    @contextmanager
    def running(self, model: str, samples: NDArray[np.float32]) -> Iterator[None]:
        """Run a block on one stretch of speech: alone, with random numbers seeded by its samples.

        The random state of the process is restored.

        Raises:
            ModelError: PyTorch fails meanwhile, for example out of memory.
        """
        import torch

        digest = hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=8).digest()
        cuda = [torch.device(self.device)] if self.device != "cpu" else []
        with _lock, torch.random.fork_rng(cuda), torch.inference_mode():
            torch.set_num_threads(self.cpu_threads)
            torch.manual_seed(int.from_bytes(digest, "big") >> 1)
            try:
                yield
            except (RuntimeError, MemoryError) as error:
                raise ModelError(
                    f"the model {model!r} cannot run on {self.device} with {self.compute_type}: "
                    f"{error}"
                ) from error


def one_thread_workers() -> ThreadPoolExecutor:
    """Get the process's pool of workers, one per core, in each of which PyTorch uses one thread.

    What they compute depends neither on the number of cores nor on what else is computed.
    """
    with _workers_lock:
        return _start_workers(os.getpid())


@lru_cache(maxsize=1)
def _start_workers(pid: int) -> ThreadPoolExecutor:  # noqa: ARG001  (a fork has no threads)
    import torch

    num_workers = num_cores()
    workers = ThreadPoolExecutor(num_workers, thread_name_prefix="torch")
    all_there = threading.Barrier(num_workers)
    num_threads = torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets its number: it must come before
        torch.set_num_threads(1)
        all_there.wait()  # so that each worker is started, and by one call

    for future in [workers.submit(start) for _ in range(num_workers)]:
        future.result()
    # PyTorch keeps the number per thread, and the one set last for new threads: restore theirs.
    torch.set_num_threads(num_threads)
    return workers
