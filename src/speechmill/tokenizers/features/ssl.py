"""A layer of HuBERT (Hsu et al., 2021), WavLM (Chen et al., 2022) or wav2vec 2.0 (Baevski et al.,
2020), by way of transformers.

Each waveform is computed alone, on one thread, and so many at a time as there are cores.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, MissingExtraError, ModelError
from speechmill.models.checkpoints import load_pretrained, read_json, resolve_checkpoint
from speechmill.models.torch import TorchEngine, one_thread_workers
from speechmill.tokenizers.features.base import Each, FeatureOptions, as_they_are

__all__ = ["SslFeatures"]

VERSION: Final = 1
"""Raised by hand whenever the values change: it is part of the recipe."""

CHUNK_S: Final = 30
"""Longer waveforms are computed in chunks: attention grows with the square of the length."""

_VARIANCE_FLOOR: Final = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor

_REPOSITORIES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "hubert": {
            "base": "facebook/hubert-base-ls960",
            "large": "facebook/hubert-large-ll60k",
        },
        "wavlm": {
            "base": "microsoft/wavlm-base",
            "base-plus": "microsoft/wavlm-base-plus",
            "large": "microsoft/wavlm-large",
        },
        "wav2vec2": {
            "base": "facebook/wav2vec2-base",
            "large": "facebook/wav2vec2-large",
            "xls-r-300m": "facebook/wav2vec2-xls-r-300m",
        },
    }
)

_lock = threading.Lock()  # of the GPU


class SslFeatures:
    """The output of a checkpoint's transformer layer number ``layer``: [num_frames, width].

    It equals transformers' ``hidden_states[layer]`` of the waveform alone, in float32 and up to
    rounding. The number of frames is the model's own, which has no frame for a window that is not
    full (25 ms for all the checkpoints above); a waveform that is shorter than one window is
    followed by zeros and has one frame.

    Raises:
        JobError: the checkpoint is of another kind, its weights are a pickle, or it has no such
            layer.
        MissingExtraError: PyTorch or transformers is not installed.
        ModelError: the checkpoint cannot be found or read.
    """

    def __init__(self, options: FeatureOptions, model_type: str) -> None:
        what, extra = f"{model_type} features", "transformers"
        if find_spec("transformers") is None:
            raise MissingExtraError(what, extra)
        self._engine = TorchEngine.place(options.device, "float32", 1, what=what, extra=extra)
        weights = resolve_checkpoint(options.model or "base", _REPOSITORIES[model_type])
        self._weights = weights
        config = read_json(weights.folder / "config.json")
        if config.get("model_type") != model_type:
            raise JobError(
                f"{weights.name!r} is a checkpoint of {config.get('model_type')!r}, not of "
                f"{model_type!r}: give --features {config.get('model_type')}, or another model"
            )
        self._kernels, self._strides = _shapes(config, weights.name)
        self.hop_length = math.prod(self._strides)
        layers = int(config.get("num_hidden_layers", 12))
        self._layer = options.layer or max(1, layers // 2)
        if not 1 <= self._layer <= layers:
            raise JobError(
                f"{weights.name!r} has the layers 1 to {layers}, and no layer {options.layer}"
            )
        prepared = read_json(weights.folder / "preprocessor_config.json")
        self.sample_rate = int(prepared.get("sampling_rate", 16_000))
        # Where the file does not say: models that normalise each layer were given such input.
        as_trained = config.get("feat_extract_norm", "group") == "layer"
        self._normalizes = bool(prepared.get("do_normalize", as_trained))
        is_folder = weights.origin == "folder"
        self.options = replace(
            options,
            model=str(weights.folder) if is_folder else weights.name,
            layer=self._layer,
        )
        self._model: Any = None
        self._model_lock = threading.Lock()
        self._mine = threading.local()

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the values."""
        return {
            "features": self.options.kind,
            "version": VERSION,
            "model": dict(self._weights.digests),
            "layer": self._layer,
            "normalizes": self._normalizes,
            "chunk_s": CHUNK_S,
        }

    def frames(
        self, waveforms: Sequence[NDArray[np.float32]], each: Each = as_they_are
    ) -> list[NDArray[Any]]:
        """The frames of each waveform, [0, width] of an empty one; see ``Features``.

        Raises:
            ModelError: PyTorch cannot run the model, as for want of memory.
        """
        model = self._loaded()

        def hear(chunk: NDArray[np.float32]) -> NDArray[Any]:
            return each(self._run(model, chunk))

        chunks = [self._chunks(np.asarray(waveform, np.float32)) for waveform in waveforms]
        if self._engine.device != "cpu":
            with _lock:
                heard = [[hear(one) for one in some] for some in chunks]
        else:
            workers = one_thread_workers()
            jobs: list[list[Future[NDArray[Any]]]] = [
                [workers.submit(hear, one) for one in some] for some in chunks
            ]
            heard = [[job.result() for job in some] for some in jobs]
        nothing = each(np.empty((0, int(model.config.hidden_size)), np.float32))
        return [np.concatenate([nothing, *some]) for some in heard]

    def _num_frames(self, num_samples: int) -> int:
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return max(num_samples, 0)

    def _chunks(self, waveform: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Cut so that each frame of the whole is a frame of one chunk."""
        window = 1  # what a frame sees, in samples
        for kernel, stride in zip(reversed(self._kernels), reversed(self._strides), strict=True):
            window = (window - 1) * stride + kernel
        if not len(waveform):
            return []
        if len(waveform) < window:
            return [np.pad(waveform, (0, window - len(waveform)))]
        step = CHUNK_S * self.sample_rate // self.hop_length * self.hop_length
        overlap = window - self.hop_length
        starts = range(0, self._num_frames(len(waveform)) * self.hop_length, step)
        return [waveform[start : start + step + overlap] for start in starts]

    def _run(self, model: Any, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        if self._normalizes:
            mean = waveform.mean()
            waveform = (waveform - mean) / np.sqrt(waveform.var() + _VARIANCE_FLOOR)
        self._mine.heard = None
        try:
            with torch.inference_mode():
                samples = torch.tensor(waveform[None], device=self._engine.device)
                model(samples)
                return np.asarray(self._mine.heard[0].cpu().numpy(), np.float32)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(
                f"the model {self._weights.name!r} cannot run on {self._engine.device}: {error}"
            ) from error
        finally:
            self._mine.heard = None

    def _loaded(self) -> Any:
        with self._model_lock:
            if self._model is None:
                from transformers import AutoModel

                model = load_pretrained(AutoModel, self._weights).float().to(self._engine.device)
                layers = model.encoder.layers
                del layers[self._layer :]
                # Large models normalise what comes out of the last one; this is before that.
                layers[-1].register_forward_hook(self._keep)
                self._model = model
            return self._model

    def _keep(self, _module: Any, _given: Any, output: Any) -> None:
        self._mine.heard = output[0] if isinstance(output, tuple) else output


def _shapes(config: Mapping[str, Any], name: str) -> tuple[list[int], list[int]]:
    """The kernels and strides of the convolutions that make frames of samples."""
    kernels = config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])
    strides = config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])
    if not kernels or len(kernels) != len(strides):
        raise ModelError(f"the config.json of {name!r} is damaged: get the checkpoint anew")
    return [int(k) for k in kernels], [int(s) for s in strides]
