"""Whisper (Radford et al., 2022) on CTranslate2, by way of faster-whisper.

Each waveform goes through faster-whisper's own ``transcribe``, one after another, with two
additions: what Silero hears no voice in is not transcribed at all, and the random numbers of the
temperature fallback start anew with each waveform, so that a rerun gives the same text.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.utils import get_assets_path
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.models import Model, resolve_whisper
from speechmill.records import Segment, Transcript
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.voice import SAMPLE_RATE, VoiceOptions, voice_spans

__all__ = ["WhisperTranscriber", "resolve_compute_type"]

VERSION: Final = 1
"""Raised by hand whenever this module gives other text or figures: it is part of the recipe."""

# Whisper's own defaults, spelt out because they shape the text: see openai/whisper, transcribe.py.
DECODING: Final[Mapping[str, Any]] = {
    "best_of": 5,
    "patience": 1.0,
    "temperature": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
    "compression_ratio_threshold": 2.4,
    "log_prob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "condition_on_previous_text": True,
    "prompt_reset_on_temperature": 0.5,
}
UNCERTAIN_LANGUAGE: Final = 0.5

# The first of these that the device supports is what "auto" means.
_PREFERRED: Final = {
    "cpu": ("int8", "int8_float32", "float32"),
    "cuda": ("float16", "bfloat16", "int8_float16", "int8_float32", "float32"),
}

logging.getLogger("faster_whisper").addHandler(logging.NullHandler())  # not on the terminal
ctranslate2.set_log_level(logging.ERROR)


class WhisperTranscriber:
    """Whisper of any size. See ``speechmill.transcribers.open_transcriber`` for the arguments.

    Raises:
        JobError: the model does not speak the language, or the device not the compute type.
        ModelError: the weights cannot be found, read or trusted.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        model: str,
        *,
        language: str | None = None,
        device: str = "auto",
        compute_type: str = "auto",
        beam_size: int = 5,
        cpu_threads: int = 0,
    ) -> None:
        self._device, self._compute_type = resolve_compute_type(device, compute_type)
        self._model = resolve_whisper(model)
        self._beam_size = beam_size
        self._cpu_threads = cpu_threads or _num_cores()
        self._voice = VoiceOptions()
        self._whisper = _load(
            self._model,
            device=self._device,
            compute_type=self._compute_type,
            cpu_threads=self._cpu_threads,
        )
        self._ctranslate2: _ReseededModel = self._whisper.model
        self._language = (
            None if language is None else language_code(language, self._languages(), model)
        )

    def _languages(self) -> list[str]:
        """The codes of the languages that the model knows."""
        if not self._ctranslate2.is_multilingual:
            return ["en"]
        token_to_id = self._whisper.hf_tokenizer.token_to_id
        return [code for code in LANGUAGES if token_to_id(f"<|{code}|>") is not None]

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values."""
        return {
            "transcriber": "whisper",
            "version": VERSION,
            "model": dict(self._model.digests),
            "language": self._language,
            "beam_size": self._beam_size,
            "compute_type": self._compute_type,
            "decoding": dict(DECODING),
            "voice_model": _voice_model_digests(),
            "voice": dict(self._voice.recipe),
        }

    @property
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it."""
        return {
            "model": self._model.name,
            "model_origin": self._model.origin,
            "transcriber_engine": "faster-whisper on CTranslate2",
            "faster-whisper": version("faster-whisper"),
            "ctranslate2": version("ctranslate2"),
            "onnxruntime": version("onnxruntime"),
            "device": self._device,
            "cpu_threads": str(self._cpu_threads),
        }

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        """Transcribe each waveform (float32 [num_samples], mono, −1..1, at 16 kHz), in order.

        Raises:
            ModelError: the engine cannot run the model, as for want of memory.
        """
        try:
            return [self._transcribe(np.asarray(waveform, np.float32)) for waveform in waveforms]
        except (RuntimeError, MemoryError) as error:
            raise ModelError(
                f"Whisper {self._model.name!r} cannot run on {self._device} "
                f"with {self._compute_type}: {error}"
            ) from error

    def _transcribe(self, waveform: NDArray[np.float32]) -> Transcript:
        spans, voice_probability = voice_spans(waveform, self._voice)
        if not spans:
            return Transcript(
                "",
                language=self._language,
                no_speech_prob=1.0 - voice_probability,
                flags=("no_voice",),
            )
        duration_s = len(waveform) / SAMPLE_RATE
        whole = spans == [(0.0, duration_s)]
        self._ctranslate2.start(_seed(waveform))
        found, info = self._whisper.transcribe(
            waveform,
            language=self._language,
            beam_size=self._beam_size,
            clip_timestamps="0" if whole else [time_s for span in spans for time_s in span],
            **DECODING,
        )
        heard = list(found)
        if not heard:
            return Transcript(
                "",
                language=self._language,
                no_speech_prob=_mean(self._ctranslate2.no_speech_probs),
                flags=("no_words",),
            )
        detected = self._language is None and self._ctranslate2.is_multilingual
        return _transcript(
            heard, duration_s, info.language, info.language_probability if detected else None
        )


def resolve_compute_type(device: str, compute_type: str) -> tuple[str, str]:
    """What ``auto`` means on this machine: the device, and the number format on it.

    Raises:
        JobError: there is no such device here, or it does not support the format.
    """
    num_gpus = ctranslate2.get_cuda_device_count()
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    kind, index = _parsed_device(device)
    if kind == "cuda" and index >= num_gpus:
        there = f"there are {num_gpus} of them" if num_gpus else "there is none"
        raise JobError(
            f"the device {device!r} is not here: CTranslate2 sees no such CUDA device "
            f"({there}); use the device 'cpu' or 'auto'"
        )
    supported = set(ctranslate2.get_supported_compute_types(kind, index))
    if compute_type == "auto":
        return device, next((t for t in _PREFERRED[kind] if t in supported), "float32")
    if compute_type not in supported:
        near = get_close_matches(compute_type, supported, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise JobError(
            f"the compute type {compute_type!r} is not supported on {device!r} here{hint} "
            f"there are: auto, {', '.join(sorted(supported))}"
        )
    return device, compute_type


def _parsed_device(device: str) -> tuple[str, int]:
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", device)
    if match is None or (match[1] == "cpu" and match[2]):
        raise JobError(f"there is no device {device!r}; there are: auto, cpu, cuda, cuda:1, …")
    return match[1], int(match[2] or 0)


def _num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _voice_model_digests() -> dict[str, str]:
    """The digests of the Silero model that faster-whisper carries."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(get_assets_path()).glob("*.onnx"))
    }


class _ReseededModel:
    """CTranslate2's Whisper, whose random numbers start anew with each waveform.

    CTranslate2 seeds its generators once in the life of a worker thread, when that thread first
    samples; ``set_random_seed`` does nothing to those that are running. So the first fallback of a
    waveform loads the model once more: new threads, new generators. It is rare, and takes far less
    than the fallback itself.
    """

    _seed_lock = threading.Lock()  # the seed is one for the whole process

    def __init__(self, load: Callable[[], Any], model: Any) -> None:
        self._load = load
        self._model = model
        self.start(0)

    def start(self, seed: int) -> None:
        """Begin a waveform: forget what the last one left."""
        self._seed: int | None = seed
        self.no_speech_probs: list[float] = []

    def generate(self, features: Any, prompts: list[list[int]], **options: Any) -> Any:
        """``ctranslate2.models.Whisper.generate``."""
        if self._seed is not None and options.get("sampling_topk", 1) != 1:
            self._reseed(self._seed, features, prompts)
            self._seed = None
        results = self._model.generate(features, prompts, **options)
        self.no_speech_probs += [result.no_speech_prob for result in results]
        return results

    def _reseed(self, seed: int, features: Any, prompts: list[list[int]]) -> None:
        self._model = None  # frees its memory before it is needed again
        with self._seed_lock:
            ctranslate2.set_random_seed(seed)
            self._model = self._load()
            # One sampled token, so that the generator takes the seed before the lock is free.
            self._model.generate(
                features, prompts, beam_size=1, sampling_topk=0, max_length=len(prompts[0]) + 1
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _load(model: Model, *, device: str, compute_type: str, cpu_threads: int) -> Any:
    """faster-whisper's model, on CTranslate2's that reseeds itself."""
    kind, index = _parsed_device(device)

    def load() -> Any:
        return ctranslate2.models.Whisper(
            str(model.folder),
            device=kind,
            device_index=index,
            compute_type=compute_type,
            intra_threads=cpu_threads,
            inter_threads=1,
        )

    try:
        whisper = WhisperModel(
            str(model.folder),
            device=kind,
            device_index=index,
            compute_type=compute_type,
            cpu_threads=cpu_threads,
        )
        whisper.model = _ReseededModel(load, whisper.model)
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


def _seed(waveform: NDArray[np.float32]) -> int:
    """A seed that only the samples decide; CTranslate2 takes 2³² − 1 to mean none."""
    digest = hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=4).digest()
    return min(int.from_bytes(digest, "big"), 2**32 - 2)


def _transcript(
    heard: Sequence[Any], duration_s: float, language: str, language_probability: float | None
) -> Transcript:
    """faster-whisper's segments (at least one) as a transcript."""
    segments: list[Segment] = []
    last_s = 0.0
    for segment in heard:
        start_s = min(max(segment.start, last_s), duration_s)
        last_s = min(max(segment.end, start_s), duration_s)
        segments.append(
            Segment(
                start_s, last_s, segment.text.strip(), segment.avg_logprob, segment.no_speech_prob
            )
        )
    text = "".join(segment.text for segment in heard).strip()
    num_tokens = [len(segment.tokens) for segment in heard]
    avg_logprob = _mean([segment.avg_logprob for segment in heard], num_tokens)
    encoded = text.encode()
    compression_ratio = len(encoded) / len(zlib.compress(encoded))
    signs = {
        "temperature_fallback": any(segment.temperature > 0 for segment in heard),
        "repetitive": compression_ratio > DECODING["compression_ratio_threshold"],
        "low_confidence": avg_logprob < DECODING["log_prob_threshold"],
        "uncertain_language": language_probability is not None
        and language_probability < UNCERTAIN_LANGUAGE,
    }
    return Transcript(
        text,
        language=language,
        language_probability=language_probability,
        avg_logprob=avg_logprob,
        no_speech_prob=_mean([segment.no_speech_prob for segment in heard], num_tokens),
        compression_ratio=compression_ratio,
        segments=tuple(segments),
        flags=tuple(flag for flag, seen in signs.items() if seen),
    )


def _mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The (weighted) mean; whatever is averaged here has at least one value."""
    return float(np.average(values, weights=weights))
