"""The base of the backends that run Whisper on PyTorch: they differ in how they load a model,
detect a language, and decode one stretch of speech."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.models.torch import TorchEngine
from speechmill.models.weights import Model
from speechmill.records import Segment, Speech, Transcript, Word
from speechmill.text.figures import compression_ratio
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.languages import language_code

__all__ = [
    "DECODING",
    "WINDOW_S",
    "DecodedSegment",
    "DecodedSpeech",
    "TorchWhisper",
    "refuse_batches",
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
        "compression_ratio_threshold": 2.4,
        "logprob_threshold": -1.0,
        "no_speech_threshold": 0.6,
    }
)
UNCERTAIN_LANGUAGE: Final = 0.5  # probability: any other language together is as likely
SPOKEN_SIGNS: Final = "%$£€"


@dataclass(frozen=True, slots=True)
class DecodedSegment:
    """A segment as Whisper cuts a stretch: times in seconds from the first sample; ``text`` as
    it is decoded, with its leading space."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    num_tokens: int
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedSpeech:
    """The segments decoded from a stretch, in order, and each window's no-speech probability, also
    of windows without text."""

    pieces: tuple[DecodedSegment, ...]
    no_speech_probs: tuple[float, ...]


class TorchWhisper(ABC):
    """Whisper on PyTorch, one stretch after another, each in Whisper's own window of 30 s.

    Args:
        name: the backend's name, as in ``TRANSCRIBERS``.
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
        told = options.language
        self._language = None if told is None else language_code(told, known, model.name)
        self._allowed = tuple(
            sorted({language_code(c, known, model.name) for c in options.languages})
        )
        if self._language and self._allowed and self._language not in self._allowed:
            raise JobError(
                f"the language {self._language!r} is not one of those allowed: "
                f"{', '.join(self._allowed)}; give one or the other"
            )
        if options.task == "translate" and not multilingual:
            raise JobError(
                f"the model {model.name!r} cannot translate: it is an English-only model; "
                f"take {model.name.removesuffix('.en')!r}"
            )

    @abstractmethod
    def _probabilities(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Compute each language's probability in a stretch of speech, by code."""

    @abstractmethod
    def _decode_speech(self, samples: NDArray[np.float32], language: str) -> DecodedSpeech:
        """Decode a stretch of speech (float32 [num_samples] at 16 kHz, at most 30 s)."""

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it."""

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
                heard.append(self._among_allowed(self._probabilities(samples)))
        means = {code: float(np.mean([p[code] for p in heard])) for code in heard[0]}
        best = max(means, key=lambda code: means[code])
        return best, means[best]

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
            return Transcript(
                "", language=self._language, no_speech_prob=1.0, window_s=0.0, flags=("no_words",)
            )
        with self._engine.running(self._weights.name, samples):
            language, probability = self._language_of(speech, samples)
            decoded = self._decode_speech(samples, language)
        window_s = WINDOW_S * len(decoded.no_speech_probs)
        if not "".join(piece.text for piece in decoded.pieces).strip():
            return Transcript(
                "",
                language=self._language,
                no_speech_prob=float(np.mean(decoded.no_speech_probs)),
                window_s=window_s,
                flags=("no_words",),
            )
        return _transcript(
            [piece for piece in decoded.pieces if piece.text.strip()],
            duration_s=len(samples) / SAMPLE_RATE,
            language=language,
            language_probability=probability,
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

    def _language_of(
        self, speech: Speech, samples: NDArray[np.float32]
    ) -> tuple[str, float | None]:
        """Determine a stretch's language (given, its recording's or detected) and its
        probability."""
        if self._language or not self._multilingual:
            return self._language or "en", None
        if speech.language:
            return speech.language, speech.language_probability
        probabilities = self._among_allowed(self._probabilities(samples))
        code = max(probabilities, key=lambda code: probabilities[code])
        return code, probabilities[code]

    def _among_allowed(self, probabilities: dict[str, float]) -> dict[str, float]:
        """Normalise probabilities over the languages that are allowed."""
        if not self._allowed:
            return probabilities
        total = sum(probabilities[code] for code in self._allowed) or 1.0
        return {code: probabilities[code] / total for code in self._allowed}

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


def _transcript(
    pieces: Sequence[DecodedSegment],
    *,
    duration_s: float,
    language: str,
    language_probability: float | None,
    window_s: float,
    words: bool,
) -> Transcript:
    """Pieces (at least one, each with text) as a transcript; times within it and in order."""
    segments: list[Segment] = []
    all_words: list[Word] = []
    segment_s = word_s = 0.0
    for piece in pieces:
        start_s = min(max(piece.start_s, segment_s), duration_s)
        segment_s = min(max(piece.end_s, start_s), duration_s)
        segments.append(
            Segment(start_s, segment_s, piece.text.strip(), piece.avg_logprob, piece.no_speech_prob)
        )
        for word in piece.words:
            start_s = min(max(word.start_s, word_s), duration_s)
            word_s = min(max(word.end_s, start_s), duration_s)
            all_words.append(Word(word.word.strip(), start_s, word_s, word.probability))
    text = "".join(piece.text for piece in pieces).strip()
    num_tokens = [max(piece.num_tokens, 1) for piece in pieces]
    avg_logprob = float(np.average([piece.avg_logprob for piece in pieces], weights=num_tokens))
    ratio = compression_ratio(text)
    temperature = max(piece.temperature for piece in pieces)
    signs = {
        "temperature_fallback": temperature > 0,
        "repetitive": ratio > DECODING["compression_ratio_threshold"],
        "low_confidence": avg_logprob < DECODING["logprob_threshold"],
        "uncertain_language": language_probability is not None
        and language_probability < UNCERTAIN_LANGUAGE,
    }
    return Transcript(
        text,
        language=language,
        language_probability=language_probability,
        avg_logprob=avg_logprob,
        no_speech_prob=float(
            np.average([piece.no_speech_prob for piece in pieces], weights=num_tokens)
        ),
        compression_ratio=ratio,
        segments=tuple(segments),
        words=tuple(all_words) if words else None,
        temperature=temperature,
        window_s=window_s,
        flags=tuple(flag for flag, seen in signs.items() if seen),
    )
