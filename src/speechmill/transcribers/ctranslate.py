"""Whisper on CTranslate2: devices, workers, weights, batch sizes, memory and seeds."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError, did_you_mean
from speechmill.machine import keep_memory, num_cores
from speechmill.models.weights import Model

__all__ = [
    "Placement",
    "SeededModel",
    "choose_batch_size",
    "encode",
    "halve_if_out_of_memory",
    "load",
    "place",
    "to_array",
    "to_storage",
]

# The first of these that the device supports is what "auto" means.
_PREFERRED: Final = {
    "cpu": ("int8", "int8_float32", "float32"),
    "cuda": ("float16", "bfloat16", "int8_float16", "int8_float32", "float32"),
}
CPU_BATCH: Final = 8  # full windows; 32 gain nothing on two cores, and take more memory
MAX_WORKERS: Final = 16  # beyond it workers get several threads: each holds its own buffers
MAX_GPU_BATCH: Final = 64  # full windows, however much memory is free
# Layers of the decoder by the model's width; turbo and distilled models have fewer.
_LAYERS: Final = {384: 4, 512: 6, 768: 12, 1024: 24, 1280: 32}
_NO_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|bad_alloc|failed to allocate", re.IGNORECASE)

T = TypeVar("T")
R = TypeVar("R")

logging.getLogger("faster_whisper").addHandler(logging.NullHandler())  # not on the terminal
ctranslate2.set_log_level(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs: ``kind`` is cpu or cuda, ``devices`` the indices, one replica each."""

    kind: str
    devices: tuple[int, ...]
    compute_type: str
    workers: int
    threads: int

    @property
    def device(self) -> str:
        """Such as ``cpu`` or ``cuda:0,1``."""
        return "cpu" if self.kind == "cpu" else f"cuda:{','.join(map(str, self.devices))}"

    @property
    def callers(self) -> int:
        """Threads that keep it busy: on a GPU, one prepares while the other computes."""
        return self.workers if self.kind == "cpu" else 2 * len(self.devices)


def place(device: str, compute_type: str, cpu_threads: int = 0) -> Placement:
    """Resolve ``auto``, and choose workers and threads for this machine.

    On a CPU one worker per core, of one thread each: on two cores that is a fifth faster than one
    worker of two threads. On GPUs one worker each.

    Raises:
        JobError: there is no such device here, or it does not support the format.
    """
    num_gpus = ctranslate2.get_cuda_device_count()
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", device)
    if match is None or (match[1] == "cpu" and match[2]):
        raise JobError(f"there is no device {device!r}; there are: auto, cpu, cuda, cuda:1, …")
    kind, index = match[1], match[2]
    if kind == "cuda" and int(index or 0) >= num_gpus:
        there = f"there are {num_gpus} of them" if num_gpus else "there is none"
        raise JobError(
            f"the device {device!r} is not here: CTranslate2 sees no such CUDA device "
            f"({there}); use the device 'cpu' or 'auto'"
        )
    devices = (int(index),) if index else tuple(range(num_gpus if kind == "cuda" else 1))
    cores = cpu_threads or num_cores()
    threads = -(-cores // MAX_WORKERS) if kind == "cpu" else 0
    workers = cores // threads if kind == "cpu" else 1
    compute_type = _compute_type(device, kind, devices, compute_type)
    return Placement(kind, devices, compute_type, workers, threads)


def _compute_type(device: str, kind: str, devices: Sequence[int], compute_type: str) -> str:
    supported = set.intersection(
        *(set(ctranslate2.get_supported_compute_types(kind, index)) for index in devices)
    )
    if compute_type == "auto":
        return next((t for t in _PREFERRED[kind] if t in supported), "float32")
    if compute_type not in supported:
        hint = did_you_mean(compute_type, supported)
        raise JobError(
            f"the compute type {compute_type!r} is not supported on {device!r} here{hint} "
            f"there are: auto, {', '.join(sorted(supported))}"
        )
    return compute_type


def choose_batch_size(placement: Placement, width: int, beam_size: int) -> int:
    """Choose how many full windows a batch may hold: on a GPU, as fit half of its free memory."""
    if placement.kind == "cpu":
        return CPU_BATCH
    free = min(_free_gpu_memory(index) for index in placement.devices)
    layers = _LAYERS.get(width, 32)
    # Bytes of keys and values of the audio (1,500 frames) and of each beam's text (448 tokens) in
    # float16, and of the encoder's own buffers.
    each = layers * width * 4 * (1500 + 448 * beam_size) + 1500 * width * 48
    return max(1, min(MAX_GPU_BATCH, free // 2 // each))


def _free_gpu_memory(index: int) -> int:
    """Ask the driver for a GPU's free memory in bytes; 4 GB if it does not answer.

    The driver counts all GPUs, CTranslate2 those that this process may see.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) and visible[index] else str(index)
    query = ["nvidia-smi", f"--id={name}", "--query-gpu=memory.free", "--format=csv,noheader"]
    try:
        said = subprocess.run(  # noqa: S603 - fixed arguments
            query, capture_output=True, check=True, text=True, timeout=10
        )
        return int(said.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 4 * 2**30


def load(model: Model, placement: Placement) -> WhisperModel:
    """Load faster-whisper's model, with a ``SeededModel`` in place of CTranslate2's.

    Raises:
        ModelError: the weights are damaged, or do not fit together.
    """
    where: dict[str, Any] = {
        "device": placement.kind,
        "compute_type": placement.compute_type,
    }

    if placement.kind == "cpu":
        keep_memory()
    try:
        whisper = WhisperModel(
            str(model.folder),
            device_index=list(placement.devices),
            cpu_threads=placement.threads,
            num_workers=placement.workers,
            **where,
        )
        whisper.model = SeededModel(
            partial(
                ctranslate2.models.Whisper,
                str(model.folder),
                device_index=placement.devices[0],
                intra_threads=placement.threads,
                inter_threads=1,
                **where,
            ),
            whisper.model,
        )
    # What CTranslate2 and tokenizers raise for a damaged file is not of one class.
    except Exception as error:
        raise ModelError(
            f"the model {model.name!r} in {model.folder} cannot be loaded: {error}"
        ) from error
    num_mels = whisper.feature_extractor.mel_filters.shape[0]
    if num_mels != whisper.model.n_mels:
        raise ModelError(
            f"the model {model.name!r} in {model.folder} wants {whisper.model.n_mels} mel bands, "
            f"its preprocessor_config.json is missing or says {num_mels}: add the right one"
        )
    return whisper


@dataclass(slots=True)
class Generated:
    """What was generated of a stretch of speech: each window's probability of no speech, and the
    encoder's output for the first one, in CTranslate2's storage."""

    no_speech_probs: list[float] = field(default_factory=list)
    encoded: Any = None


class SeededModel:
    """CTranslate2's Whisper, whose random numbers start anew with each stretch of speech.

    CTranslate2 seeds its generators once in the life of a worker thread, when that thread first
    samples; ``set_random_seed`` does nothing to those that are running. So the first fallback of a
    stretch loads the model once more: new threads, new generators. It is rare, and takes less than
    the fallback itself. One such model lives at a time.
    """

    _seed_lock = threading.Lock()  # the seed is one for the whole process

    def __init__(self, load_alone: Callable[[], Any], model: Any) -> None:
        self._load_alone = load_alone
        self._model = model
        self._mine = threading.local()

    def start(self, seed: int) -> None:
        """Begin a stretch of speech in this thread; ``finish`` must follow."""
        self._mine.seed = seed
        self._mine.sampling = None
        self._mine.generated = Generated()

    def finish(self) -> Generated:
        """End it: what was generated."""
        if self._mine.sampling is not None:
            self._mine.sampling = None
            self._seed_lock.release()
        generated: Generated = self._mine.generated
        self._mine.generated = None
        return generated

    def generate(self, features: Any, prompts: list[list[int]], **options: Any) -> Any:
        """``ctranslate2.models.Whisper.generate``."""
        model = self._model
        if options.get("sampling_topk", 1) != 1:
            if self._mine.sampling is None:
                self._mine.sampling = self._seeded(features, prompts)
            model = self._mine.sampling
        results = model.generate(features, prompts, **options)
        generated = getattr(self._mine, "generated", None)
        if generated is not None:
            generated.no_speech_probs += [result.no_speech_prob for result in results]
            if generated.encoded is None:
                generated.encoded = features
        return results

    def _seeded(self, features: Any, prompts: list[list[int]]) -> Any:
        self._seed_lock.acquire()
        try:
            ctranslate2.set_random_seed(self._mine.seed)
            model = self._load_alone()
            # One sampled token, so that the generator takes the seed.
            model.generate(
                features, prompts, beam_size=1, sampling_topk=0, max_length=len(prompts[0]) + 1
            )
        except BaseException:
            self._seed_lock.release()
            raise
        return model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def encode(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
    """Encode log mel energies float32 [batch, mels, 2 frames] to [batch, frames, width]."""
    return to_array(model.encode(ctranslate2.StorageView.from_array(features), to_cpu=True))


def to_array(view: Any) -> NDArray[Any]:
    """Convert CTranslate2's storage, on any device, to an array."""
    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if view.dtype == ctranslate2.DataType.bfloat16:  # numpy has no such type
        view = view.to(ctranslate2.DataType.float32)
    return np.array(view)


def to_storage(encoded: NDArray[Any], placement: Placement) -> Any:
    """Convert an encoder's output to CTranslate2's storage, in its compute type."""
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded))
    if "bfloat16" in placement.compute_type:
        view = view.to(ctranslate2.DataType.bfloat16)
    return view


def halve_if_out_of_memory(
    compute: Callable[[Sequence[T]], list[R]], batch: Sequence[T]
) -> list[R]:
    """Run ``compute(batch)``; a batch that exceeds the memory is halved, and each half tried."""
    try:
        return compute(batch)
    except (RuntimeError, MemoryError) as error:
        no_memory = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))
        if not no_memory or len(batch) == 1:
            raise
    middle = len(batch) // 2
    return halve_if_out_of_memory(compute, batch[:middle]) + halve_if_out_of_memory(
        compute, batch[middle:]
    )
