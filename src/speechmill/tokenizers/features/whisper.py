"""The output of Whisper's encoder: 50 frames a second.

The windows are those of transcription (``transcribers/windows.py``), so that what it has computed
need not be computed again. What is longer than 30 s is cut into chunks of 30 s, each of which is
heard on its own.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import ModelError
from speechmill.models.weights import resolve_whisper
from speechmill.records import Speech
from speechmill.tokenizers.features.base import Each, FeatureOptions, as_they_are
from speechmill.transcribers import ctranslate
from speechmill.transcribers.base import SharesEncoder, Transcriber
from speechmill.transcribers.encoder import SAMPLE_RATE, SpeechEncoder
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.transcribers.windows import FULL_WINDOW_S, WindowOptions

__all__ = ["CHUNK_SAMPLES", "WhisperFeatures"]

VERSION: Final = 1
"""Raised by hand whenever the values change: it is part of the recipe."""

HOP_LENGTH: Final = 320
CHUNK_SAMPLES: Final = int(FULL_WINDOW_S) * SAMPLE_RATE

_WHOLE_NUMBERS: Final = ("int8", "int8_float32")
"""Compute types whose sums are of whole numbers, so that a batch changes nothing: measured, on the
processor. With the others each window is computed alone, on one thread."""

_SHAPING: Final = ("grid_s", "min_s", "pad_s")
"""The options of windows that decide their length."""

_FILES: Final = ("model.bin", "preprocessor_config.json")
"""The files of a model that shape its encoder's output."""

GPU_BATCH: Final = 16


class WhisperFeatures:
    """The output of Whisper's encoder for a waveform: [ceil(num_samples / 320), width].

    The model is loaded when it is first needed, unless a transcriber has it (``attach``).

    Raises:
        JobError: the device is not here, or does not support the compute type.
        ModelError: the weights cannot be found, read or trusted.
    """

    sample_rate = SAMPLE_RATE
    hop_length = HOP_LENGTH

    def __init__(self, options: FeatureOptions) -> None:
        self._model = resolve_whisper(options.model or "base")
        placement = ctranslate.place(options.device, options.compute_type)
        if placement.kind == "cpu":
            placement = replace(placement, threads=1)
        self._placement = placement
        is_folder = self._model.origin == "folder"
        self.options = replace(
            options,
            model=str(self._model.folder) if is_folder else self._model.name,
            compute_type=placement.compute_type,
        )
        self._windows = WindowOptions()
        self._encoder: SpeechEncoder | None = None
        self._lock = threading.Lock()

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the values."""
        windows = self._windows.recipe
        return {
            "features": "whisper",
            "version": VERSION,
            "model": _shaping(self._model.digests),
            "compute_type": self._placement.compute_type,
            "window": {name: windows[name] for name in _SHAPING},
        }

    def frames(
        self, waveforms: Sequence[NDArray[np.float32]], each: Each = as_they_are
    ) -> list[NDArray[Any]]:
        """The frames of each waveform, [0, width] of an empty one; see ``Features``.

        Raises:
            ModelError: the engine cannot run the model, as for want of memory.
        """
        encoder = self._heard_by()
        chunks = [
            Speech(np.asarray(waveform[first : first + CHUNK_SAMPLES], np.float32))
            for waveform in waveforms
            for first in range(0, max(len(waveform), 1), CHUNK_SAMPLES)
        ]
        groups: defaultdict[float, list[int]] = defaultdict(list)
        for i, chunk in enumerate(chunks):
            groups[self._windows.window_s(len(chunk.samples), SAMPLE_RATE)].append(i)
        size = self._batch_size(encoder.placement)
        jobs: list[tuple[list[int], Future[list[NDArray[Any]]]]] = []
        for window_s, indices in sorted(groups.items(), reverse=True):
            for first in range(0, len(indices), size):
                some = indices[first : first + size]
                batch = [chunks[i] for i in some]
                jobs.append((some, self._pool.submit(self._hear, encoder, batch, window_s, each)))
        heard: dict[int, NDArray[Any]] = {}
        try:
            for some, job in jobs:
                heard |= zip(some, job.result(), strict=True)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(
                f"Whisper's encoder {self._model.name!r} cannot run on "
                f"{encoder.placement.device} with {encoder.placement.compute_type}: {error}"
            ) from error
        finally:
            for _, job in jobs:
                job.cancel()
        counts = [max(1, -(-len(waveform) // CHUNK_SAMPLES)) for waveform in waveforms]
        ends = np.cumsum(counts).tolist()
        return [
            np.concatenate([heard[i] for i in range(end - count, end)])
            for end, count in zip(ends, counts, strict=True)
        ]

    def from_encoded(self, encoded: NDArray[Any], num_samples: int) -> NDArray[np.float32]:
        """The frames of a waveform of at most 30 s, out of what the encoder made of its window."""
        return np.asarray(encoded[: -(-num_samples // HOP_LENGTH)], np.float32)

    def attach(self, transcriber: Transcriber) -> None:
        """Use a transcriber's model instead of loading it again, if it is the same."""
        if isinstance(transcriber, WhisperTranscriber) and self._is_same(transcriber):
            self._encoder = transcriber.encoder

    def shares(self, transcriber: Transcriber) -> TypeGuard[SharesEncoder]:
        """Whether this transcriber's encoder, in any batch, gives the same as ours.

        On a GPU they are the same up to rounding.
        """
        return (
            isinstance(transcriber, WhisperTranscriber)
            and transcriber.recipe["window"] != "full"
            and self._is_same(transcriber)
            and (self._placement.kind != "cpu" or self._is_exact(self._placement))
        )

    def _is_same(self, transcriber: WhisperTranscriber) -> bool:
        ours, theirs = self._placement, transcriber.encoder.placement
        of_ours, of_theirs = self._windows.recipe, transcriber.encoder.windows.recipe
        return (
            _shaping(transcriber.digests) == _shaping(self._model.digests)
            and (theirs.kind, theirs.compute_type) == (ours.kind, ours.compute_type)
            and (theirs.kind != "cpu" or theirs.threads == 1 or self._is_exact(theirs))
            and all(of_ours[name] == of_theirs[name] for name in _SHAPING)
        )

    def _batch_size(self, placement: ctranslate.Placement) -> int:
        if placement.kind == "cpu":
            return ctranslate.CPU_BATCH if self._is_exact(placement) else 1
        return GPU_BATCH

    @staticmethod
    def _is_exact(placement: ctranslate.Placement) -> bool:
        """Whether a batch gives each window exactly what it gives alone."""
        return placement.kind == "cpu" and placement.compute_type in _WHOLE_NUMBERS

    def _hear(
        self, encoder: SpeechEncoder, batch: Sequence[Speech], window_s: float, each: Each
    ) -> list[NDArray[Any]]:
        def heard(some: Sequence[Speech]) -> list[NDArray[Any]]:
            encoded = encoder.encode_windows(some, [window_s] * len(some))
            return [
                each(self.from_encoded(e, len(s.samples)).copy())
                for e, s in zip(encoded, some, strict=True)
            ]

        return ctranslate.halve_if_out_of_memory(heard, batch)

    def _heard_by(self) -> SpeechEncoder:
        with self._lock:
            if self._encoder is None:
                whisper = ctranslate.load(self._model, self._placement)
                self._encoder = SpeechEncoder(whisper, self._placement, self._windows, None, ())
            return self._encoder

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._placement.callers, thread_name_prefix="units")


def _shaping(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name in _FILES}
