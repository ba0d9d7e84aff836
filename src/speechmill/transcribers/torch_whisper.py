"""The base of the backends that run Whisper on PyTorch: they differ in how they load a model,
detect a language, and decode one stretch of speech."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.models.torch import TorchEngine
from speechmill.models.weights import Model
from speechmill.records import Speech, Transcript
from speechmill.transcribers import results
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.languages import (
    SpokenLanguage,
    among,
    best,
    chosen_languages,
    is_other,
)
from speechmill.transcribers.results import DecodedSegment

__all__ = [
    "DECODING",
    "DecodedSpeech",
    "TorchWhisper",
    "refuse_batches",
    "torch_provenance",
]

SAMPLE_RATE: Final = 16_000
WINDOW_S: Final = 30.0
MIN_SPEECH_S: Final = 0.1
"""No word is shorter."""

# Whisper's own defaults, spelt out because they shape the text: see openai/whisper, transcribe.py.
# Nothing is conditioned on previous text: a stretch of speech is one window, or little more.
DECODING: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "best_of": 5,
        "compression_ratio_threshold": results.MAX_COMPRESSION_RATIO,
        "logprob_threshold": results.MIN_LOGPROB,
        "no_speech_threshold": 0.6,
    }
)
SPOKEN_SIGNS: Final = "%$£€"


@dataclass(frozen=True, slots=True)
class DecodedSpeech:
    """The segments decoded from a stretch, in order, and each window's no-speech probability, also
    of windows without text. ``languages`` are the probabilities of those in its first window, by
    code; none of a model that knows but one."""

    pieces: tuple[DecodedSegment, ...]
    no_speech_probs: tuple[float, ...]
    languages: Mapping[str, float] = field(default_factory=dict)


class TorchWhisper(ABC):
    """Whisper on PyTorch, one stretch after another, each in Whisper's own window of 30 s.

    Args:
        name: the backend's name, as in ``TRANSCRIBERS``, which is also its library's.
        version: of the backend's own code that shapes text.
        model: where the weights are.
        engine: what runs them.
        known: the codes of the model's languages; ``["en"]`` if it is English-only.
        multilingual: whether it has more than one.
        options: of the transcriber.

    Raises:
        JobError: an option that this model cannot do.
    """

    sample_rate = SAMPLE_RATE
    max_speech_s = WINDOW_S
    needs_voice = True

    def __init__(
        self,
        name: str,
        version: int,
        model: Model,
        engine: TorchEngine,
        *,
        known: Collection[str],
        multilingual: bool,
        options: TranscriberOptions,
    ) -> None:
        self._name, self._version = name, version
        self._weights, self._engine = model, engine
        self._multilingual, self._options = multilingual, options
        refuse_batches(name, options)
        if (prompt := self._prompt()) and "<|" in prompt:
            raise JobError(
                f"initial_prompt and hotwords must be plain text, without Whisper's own tokens: "
                f"there is a '<|' in {prompt!r}"
            )
        self._language, self._allowed = chosen_languages(
            options, known, model.name, multilingual=multilingual
        )

    @abstractmethod
    def _probabilities(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Compute each language's probability in a stretch of speech, by code."""

    @abstractmethod
    def _decode_speech(self, samples: NDArray[np.float32], language: str) -> DecodedSpeech:
        """Decode a stretch of speech (float32 [num_samples] at 16 kHz, at most 30 s)."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it."""
        return torch_provenance(self._name, self._weights, self._engine)

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values."""
        options = self._options
        return {
            "transcriber": self._name,
            "version": self._version,
            "model": dict(self._weights.digests),
            "language": self._language,
            "languages": list(self._allowed),
            "task": options.task,
            "window": "full",
            "beam_size": options.beam_size,
            "temperature": list(options.temperature),
            "words": options.words,
            "initial_prompt": options.initial_prompt,
            "hotwords": options.hotwords,
            "suppress_numerals": options.suppress_numerals,
            "compute_type": self._engine.compute_type,
            "decoding": dict(DECODING),
        }

    def transcribe(self, speech: Sequence[Speech]) -> list[Transcript]:
        """Transcribe each stretch of speech, none longer than 30 s.

        Raises:
            ModelError: the engine cannot run the model, for example out of memory.
        """
        return [self._transcribe(one) for one in speech]

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:
        """Detect the language of one recording, by its mean probability over the stretches.

        Raises:
            ModelError: the engine cannot run the model, for example out of memory.
        """
        if self._language or not self._multilingual or not speech:
            return None
        heard = []
        for one in speech:
            samples = self._samples(one)
            with self._engine.running(self._weights.name, samples):
                heard.append(among(self._allowed, self._probabilities(samples)))
        return best({code: results.mean([p[code] for p in heard]) for code in heard[0]})

    def _prompt(self) -> str | None:
        """Make the text that a stretch continues: hotwords, then the initial prompt.

        Whisper has no list of words to favour. faster-whisper puts hotwords where the previous
        text stands, so that they are likely to come again; so do we.
        """
        told = (self._options.hotwords, self._options.initial_prompt)
        return " ".join(text.strip() for text in told if text and text.strip()) or None

    def _transcribe(self, speech: Speech) -> Transcript:
        samples = self._samples(speech)
        if len(samples) < MIN_SPEECH_S * SAMPLE_RATE:
            return results.no_words(self._language, 1.0, 0.0)
        with self._engine.running(self._weights.name, samples):
            spoken = self._language_of(speech, samples)
            decoded = self._decode_speech(samples, spoken.language)
        if self._multilingual and decoded.languages:
            spoken = self._checked(spoken, decoded.languages)
        window_s = WINDOW_S * len(decoded.no_speech_probs)
        if not "".join(piece.text for piece in decoded.pieces).strip():
            return results.no_words(self._language, results.mean(decoded.no_speech_probs), window_s)
        return results.transcript(
            [piece for piece in decoded.pieces if piece.text.strip()],
            len(samples) / SAMPLE_RATE,
            spoken,
            window_s=window_s,
            words=self._options.words,
        )

    def _samples(self, speech: Speech) -> NDArray[np.float32]:
        """Copy a stretch's samples, as PyTorch wants them: contiguous and writable."""
        if len(speech.samples) > WINDOW_S * SAMPLE_RATE:
            raise ModelError(
                f"Whisper hears at most {WINDOW_S:.0f} s at once, not "
                f"{len(speech.samples) / SAMPLE_RATE:.1f} s: cut it into pieces"
            )
        return np.array(speech.samples, np.float32)

    def _language_of(self, speech: Speech, samples: NDArray[np.float32]) -> SpokenLanguage:
        """Determine a stretch's language: the given one, its recording's, or the detected one."""
        if self._language or not self._multilingual:
            return SpokenLanguage(self._language or "en", None)
        if speech.language:
            return SpokenLanguage(speech.language, speech.language_probability)
        return SpokenLanguage(*best(among(self._allowed, self._probabilities(samples))))

    def _checked(
        self, spoken: SpokenLanguage, probabilities: Mapping[str, float]
    ) -> SpokenLanguage:
        """Say what language is heard besides the one that was transcribed."""
        if not is_other(spoken.language, probabilities):
            return replace(spoken, heard=spoken.language)
        flag = "uncertain_language" if self._language is None else "other_language"
        return replace(spoken, heard=best(probabilities)[0], flags=(flag,))

    @staticmethod
    def _is_numeral(text: str) -> bool:
        """Whether a token holds a digit, or a sign that is read as a word."""
        return any(c.isnumeric() or c in SPOKEN_SIGNS for c in text)


def refuse_batches(name: str, options: TranscriberOptions) -> None:
    """Raise JobError if the options ask for batches of more than one stretch."""
    if options.batch_size > 1:
        raise JobError(
            f"the transcriber {name!r} computes one stretch of speech at a time, so that a text "
            f"does not depend on its neighbours: batch_size must be 0 or 1, not "
            f"{options.batch_size}; the transcriber 'whisper' has batches"
        )


def torch_provenance(library: str, weights: Model, engine: TorchEngine) -> dict[str, str]:
    """What made a text, but did not shape it: a model, a library of that name, and PyTorch."""
    return {
        "model": weights.name,
        "model_origin": weights.origin,
        "transcriber_engine": f"{library} on PyTorch",
        library: metadata.version(library),
        "torch": metadata.version("torch"),
        "device": engine.device,
        "cpu_threads": str(engine.cpu_threads),
    }
