"""The base of the neural codecs: checkpoints, devices, batches, checks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import AudioError, JobError, MissingExtraError, ModelError
from speechmill.models.checkpoints import load_pretrained, read_json, resolve_checkpoint
from speechmill.models.torch import TorchEngine
from speechmill.records import Codes
from speechmill.tokenizers.base import stored
from speechmill.tokenizers.exact.lanes import side_by_side

__all__ = [
    "EXTRA",
    "WINDOW_S",
    "NeuralCodec",
    "TransformersCodec",
    "fold_weight_norm",
    "in_windows",
]

VERSION: Final = 1
"""Raised by hand whenever codes of the same weights change: it is part of the recipe."""

EXTRA: Final = "codecs"

BATCH_S: Final = 240.0
"""Seconds of audio in a batch on a GPU."""

WINDOW_S: Final = 20.0
"""Seconds of a window. Audio of two windows or more is computed window by window, in bounded
memory, by those codecs whose codes depend on a few frames around them only."""

_lock = threading.Lock()


class NeuralCodec(ABC):
    """A neural codec: a checkpoint, its encoder and its decoder. Weights are float32.

    On a CPU each clip is computed alone (see ``lanes``). On a GPU those of one length are computed
    together, where rounding may depend on how many they are.

    Args:
        model: a hub id, a short name for one, or a folder with config.json and model.safetensors.
        device: auto, cpu, cuda or cuda:1. Only the CPU's codes are the same everywhere.

    Raises:
        JobError: no such device; the weights are a pickle, or another kind of model.
        MissingExtraError: a library is not installed.
        ModelError: the checkpoint cannot be found or read.
    """

    name: ClassVar[str]
    repositories: ClassVar[Mapping[str, str]]
    """Short names of checkpoints, and the hub ids that they mean."""

    libraries: ClassVar[tuple[str, ...]]
    """The modules that the codec needs, all of the extra."""

    max_s: ClassVar[float | None] = None
    """The longest waveform, in seconds; None where there is no limit."""

    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int

    def __init__(self, model: str, device: str) -> None:
        try:
            for library in self.libraries:
                import_module(library)
        except ImportError:
            raise MissingExtraError(f"the tokenizer {self.name!r}", EXTRA) from None
        self._device = TorchEngine.place(
            device, "float32", 1, what=f"the tokenizer {self.name!r}", extra=EXTRA
        ).device
        self._weights = resolve_checkpoint(model, self.repositories)
        self._model: Any = self._load().float().to(self._device)
        self._in_batches = self._device != "cpu"

    @property
    def frame_rate(self) -> float:
        """Frames a second, in Hz."""
        return self.sample_rate / self.hop_length

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the codes: the weights' SHA-256 by file, and the codebooks."""
        return {
            "tokenizer": self.name,
            "version": VERSION,
            "num_codebooks": self.num_codebooks,
            "weights": dict(self._weights.digests),
        }

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns int16 (int32 above 32,768 codes) [num_codebooks, num_frames(num_samples)] a
        waveform, in order. The last frame is the codec's own for a waveform that ends within it.

        Raises:
            AudioError: a waveform is longer than the codec takes.
            ModelError: PyTorch cannot run the model, as for want of memory.
        """
        for waveform in waveforms:
            if self.max_s is not None and len(waveform) > self.max_s * self.sample_rate:
                raise AudioError(
                    f"{self.name} takes {self.max_s:g} s at a time, not "
                    f"{len(waveform) / self.sample_rate:.0f} s: its memory grows with the square "
                    "of the length; cut long recordings (--segment vad)"
                )
        with self._running():
            if self._in_batches:
                return self._encode_batches(waveforms)
            return side_by_side(self._encode_one, waveforms, [len(w) for w in waveforms])

    def decode(self, codes: Sequence[Codes]) -> list[NDArray[np.float32]]:
        """Decode what ``encode`` gave: [num_codebooks, num_frames] each.

        Returns float32 [num_samples] each, in order, at ``sample_rate``: as many samples as the
        codec's own decoder gives, ``decoded_length(num_frames)``. It is up to a frame longer than
        what was encoded, whose length the codes do not hold: cut it yourself.

        Raises:
            JobError: not such codes: another shape, or codes that are not in the codebook.
            ModelError: PyTorch cannot run the model, as for want of memory.
        """
        import torch

        for one in codes:
            self._check(one)
        with self._running():
            if not self._in_batches:
                return side_by_side(self._decode_one, codes, [one.values.shape[1] for one in codes])
            with _lock, torch.inference_mode():
                return [self._decode_one(one) for one in codes]

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that ``encode`` gives for ``num_samples``."""
        return -(-num_samples // self.hop_length)

    def decoded_length(self, num_frames: int) -> int:
        """Number of samples that ``decode`` gives for ``num_frames``."""
        return num_frames * self.hop_length

    @abstractmethod
    def _load(self) -> Any:
        """Load the model of ``_weights`` in evaluation mode; JobError, ModelError."""

    @abstractmethod
    def _codes(self, waveforms: Any) -> Any:
        """Tensor [N, 1, num_samples] → [N, at least num_codebooks, at least num_frames]."""

    @abstractmethod
    def _waveform(self, codes: Any) -> Any:
        """Tensor [1, num_codebooks, num_frames] → [1, 1, num_samples] or [1, num_samples]."""

    def _choose_codebooks(self, wanted: int, there: int) -> int:
        """``wanted``, or all where it is 0; JobError where the model has fewer."""
        if not 0 <= wanted <= there:
            raise JobError(
                f"{self.name}: num_codebooks must be between 1 and {there}, or 0 for all, "
                f"not {wanted}"
            )
        return wanted or there

    def _choose_bandwidth(self, wanted: float, there: Sequence[float]) -> float:
        """``wanted``; JobError where the model has no such bandwidth (kbit/s)."""
        if wanted not in there:
            listed = ", ".join(f"{b:g}" for b in there)
            raise JobError(f"{self.name}: bandwidth must be one of {listed}, not {wanted:g}")
        return wanted

    def _encode_one(self, waveform: NDArray[np.float32]) -> Codes:
        return self._encode_alike([waveform])[0]

    def _encode_alike(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode waveforms of one length, as one batch."""
        import torch

        num_samples = len(waveforms[0])
        shape = (self.num_codebooks, self.num_frames(num_samples))
        if not num_samples:
            return [stored(np.empty(shape, np.int64), self.codebook_size) for _ in waveforms]
        samples = torch.tensor(np.stack(waveforms), dtype=torch.float32, device=self._device)
        codes = self._codes(samples[:, None])[:, : shape[0], : shape[1]].cpu().numpy()
        if codes.shape[1:] != shape:
            raise ModelError(
                f"the model {self._weights.name!r} gives {list(codes.shape[1:])} codes for "
                f"{num_samples} samples, not {list(shape)}: its config.json does not fit its "
                "weights; get the checkpoint anew"
            )
        return [stored(one, self.codebook_size) for one in codes]

    def _decode_one(self, codes: Codes) -> NDArray[np.float32]:
        import torch

        if not codes.values.shape[1]:
            return np.empty(0, np.float32)
        values = torch.tensor(codes.values.astype(np.int64), device=self._device)
        return np.asarray(self._waveform(values[None]).reshape(-1).cpu().numpy(), np.float32)

    def _check(self, codes: Codes) -> None:
        """Raise JobError where these cannot be codes of this codec."""
        values = codes.values
        if values.ndim != 2 or len(values) != self.num_codebooks or values.dtype.kind not in "iu":
            raise JobError(
                f"{self.name}: codes must be integers [{self.num_codebooks}, num_frames], not "
                f"{values.dtype} {list(values.shape)}"
            )
        if values.size and not 0 <= values.min() <= values.max() < self.codebook_size:
            raise JobError(
                f"{self.name}: codes must be between 0 and {self.codebook_size - 1}, not "
                f"{values.min()} to {values.max()}; they come from another codec"
            )

    def _encode_batches(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode those of one length together, up to ``BATCH_S`` at a time."""
        import torch

        alike: defaultdict[int, list[int]] = defaultdict(list)
        for i, waveform in enumerate(waveforms):
            alike[len(waveform)].append(i)
        found: dict[int, Codes] = {}
        with _lock, torch.inference_mode():
            for num_samples, indices in alike.items():
                size = max(1, int(BATCH_S * self.sample_rate / max(1, num_samples)))
                for start in range(0, len(indices), size):
                    batch = indices[start : start + size]
                    encoded = self._encode_halving([waveforms[i] for i in batch])
                    found.update(zip(batch, encoded, strict=True))
        return [found[i] for i in range(len(waveforms))]

    def _encode_halving(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode a batch; in halves where the GPU has no memory for all of it."""
        import torch

        try:
            return self._encode_alike(waveforms)
        except torch.OutOfMemoryError:
            if len(waveforms) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(waveforms) // 2
        return self._encode_halving(waveforms[:half]) + self._encode_halving(waveforms[half:])

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Turn what PyTorch raises into ModelError."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            raise ModelError(
                f"the model {self._weights.name!r} cannot run on {self._device}: {error}"
            ) from error


class TransformersCodec(NeuralCodec):
    """A codec of the transformers library. ``name`` is also what it calls the kind of model."""

    libraries = ("safetensors", "torch", "transformers")

    @property
    def _config(self) -> Any:
        return self._model.config

    def _load(self) -> Any:
        kind = read_json(self._weights.folder / "config.json").get("model_type")
        if kind != self.name:
            raise JobError(
                f"{self.name}: {self._weights.name!r} is a checkpoint of {kind!r}, not of "
                f"{self.name!r}; give one of that kind"
            )
        from transformers import AutoModel

        return load_pretrained(AutoModel, self._weights)


def fold_weight_norm(model: Any) -> None:
    """Replace normalised weights by their values, which the model would compute at each call."""
    from torch.nn.utils import parametrize

    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def in_windows(
    encode: Callable[[Any], Any], samples: Any, hop_length: int, window: int, context: int
) -> Any:
    """Encode long samples piece by piece, where codes depend on a few frames around them only.

    Args:
        encode: samples, a tensor [N, 1, a multiple of hop_length], → codes [N, num_codebooks,
            num_frames].
        samples: tensor [N, 1, a multiple of hop_length].
        hop_length: samples that come out as one frame.
        window: frames of a piece. The last one has up to twice as many.
        context: frames on either side that are encoded with a piece, because its codes depend on
            them.

    Returns:
        [N, num_codebooks, num_samples / hop_length].
    """
    import torch

    num_frames = samples.shape[-1] // hop_length
    starts = [i * window for i in range(max(1, num_frames // window))]
    codes = []
    for start, end in zip(starts, [*starts[1:], num_frames], strict=True):
        first, last = max(0, start - context), min(num_frames, end + context)
        piece = encode(samples[..., first * hop_length : last * hop_length])
        codes.append(piece[..., start - first : end - first])
    return torch.cat(codes, dim=-1)
