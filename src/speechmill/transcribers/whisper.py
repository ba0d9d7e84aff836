"""Whisper (Radford et al., 2022) on CTranslate2, by way of faster-whisper.

Stretches of speech are decoded in batches of windows that are as long as the speech needs
(``windows``, ``adaptive``), by several workers (``ctranslate``). Suspicious outcomes, and
everything with ``window="full"``, go through faster-whisper's own ``transcribe``
(``full_window``).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final

from speechmill.errors import ModelError
from speechmill.models.weights import resolve_whisper
from speechmill.records import Speech, Transcript
from speechmill.transcribers import ctranslate, results
from speechmill.transcribers.adaptive import AdaptiveWindows
from speechmill.transcribers.base import OnEncoded, TranscriberOptions
from speechmill.transcribers.encoder import SAMPLE_RATE, SpeechEncoder
from speechmill.transcribers.full_window import FullWindow
from speechmill.transcribers.languages import LANGUAGES, best, chosen_languages
from speechmill.transcribers.whisper_tokens import WhisperTokens
from speechmill.transcribers.windows import FULL_WINDOW_S, WindowOptions

__all__ = ["WhisperTranscriber"]

VERSION: Final = 9
"""Raised by hand whenever this code gives other text or figures: it is part of the recipe."""


class WhisperTranscriber:
    """Whisper of any size. See ``speechmill.transcribers.open_transcriber`` for the arguments.

    Raises:
        JobError: the model does not speak the language, or the device not the compute type.
        ModelError: the weights cannot be found, read or trusted.
    """

    sample_rate = SAMPLE_RATE
    max_speech_s = FULL_WINDOW_S
    needs_voice = True

    def __init__(self, model: str, options: TranscriberOptions | None = None) -> None:
        self._options = options = options or TranscriberOptions()
        self._placement = ctranslate.place(
            options.device, options.compute_type, options.cpu_threads
        )
        self._model = resolve_whisper(model)
        self._windows = WindowOptions()
        self._whisper = ctranslate.load(self._model, self._placement)
        self._ctranslate2: Any = self._whisper.model
        self._language, self._allowed = chosen_languages(
            options,
            self._known_languages(),
            model,
            multilingual=self._ctranslate2.is_multilingual,
        )
        # Sampling from the start: no batch of it would be the same alone.
        self._is_full = options.window == "full" or options.temperature[0] > 0
        self._encoder = SpeechEncoder(
            self._whisper, self._placement, self._windows, self._language, self._allowed
        )
        whisper_tokens = WhisperTokens(self._whisper, options)
        self._full = FullWindow(self._whisper, self._encoder, whisper_tokens, options)
        self._adaptive = AdaptiveWindows(
            self._whisper, self._encoder, whisper_tokens, self._full, options
        )
        self._pool = ThreadPoolExecutor(self._placement.callers, thread_name_prefix="whisper")
        self._lock = threading.Lock()
        self._num_calls = 0

    def _known_languages(self) -> list[str]:
        """The codes of the languages that the model knows."""
        if not self._ctranslate2.is_multilingual:
            return ["en"]
        token_to_id = self._whisper.hf_tokenizer.token_to_id
        return [code for code in LANGUAGES if token_to_id(f"<|{code}|>") is not None]

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values."""
        options = self._options
        return {
            "transcriber": "whisper",
            "version": VERSION,
            "model": dict(self._model.digests),
            "language": self._language,
            "languages": list(self._allowed),
            "task": options.task,
            "window": "full" if self._is_full else dict(self._windows.recipe),
            "beam_size": options.beam_size,
            "temperature": list(options.temperature),
            "words": options.words,
            "initial_prompt": options.initial_prompt,
            "hotwords": options.hotwords,
            "suppress_numerals": options.suppress_numerals,
            "compute_type": self._placement.compute_type,
            "decoding": dict(results.DECODING),
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
            "device": self._placement.device,
            "workers": str(self._placement.workers),
            "threads_per_worker": str(self._placement.threads),
            "batch_size": str(self._batch_size),
        }

    @property
    def digests(self) -> Mapping[str, str]:
        """The SHA-256 of each file of the model, by name."""
        return self._model.digests

    @property
    def encoder(self) -> SpeechEncoder:
        """The encoder, for callers that use its output besides the text."""
        return self._encoder

    def transcribe(
        self, speech: Sequence[Speech], *, on_encoded: OnEncoded | None = None
    ) -> list[Transcript]:
        """Transcribe each stretch of speech, none longer than 30 s.

        Args:
            speech: the stretches.
            on_encoded: is called with a stretch's number and what the encoder made of it in its
                first window ([50 · window_s, width], not to be kept: copy what you need), from
                any thread. It is not called with ``window="full"``, where the engine keeps that
                to itself.

        Raises:
            ModelError: the engine cannot run the model, for example out of memory.
        """
        try:
            with self._call() as is_alone:
                return self._transcribed(speech, on_encoded, is_alone=is_alone)
        except (RuntimeError, MemoryError) as error:
            raise self._cannot_run(error) from error

    def _transcribed(
        self, speech: Sequence[Speech], on_encoded: OnEncoded | None, *, is_alone: bool
    ) -> list[Transcript]:
        batches = self._batches(speech)
        if is_alone and len(batches) == 1:
            batches = self._shared_out(batches[0])
        jobs: list[tuple[list[int], Future[list[Transcript]]]] = []
        for chosen in batches:
            batch = [speech[i] for i in chosen]
            heard = None if on_encoded is None else _numbered(on_encoded, chosen)
            jobs.append((chosen, self._pool.submit(self._batch, batch, heard)))
        return _collected(jobs, len(speech))

    def _batches(self, speech: Sequence[Speech]) -> list[list[int]]:
        """Group the numbers of stretches into batches, by the length of the decoder's input."""
        groups: defaultdict[float, list[int]] = defaultdict(list)
        for i, one in enumerate(speech):
            groups[self._windows.decoder_s(self._window_s(one))].append(i)
        batches = []
        for decoder_s, indices in sorted(groups.items(), reverse=True):
            size = 1 if self._is_full else self._batch_of(decoder_s)
            indices.sort(key=lambda i: len(speech[i].samples), reverse=True)
            batches += [indices[first : first + size] for first in range(0, len(indices), size)]
        return batches

    def _shared_out(self, indices: list[int]) -> list[list[int]]:
        """A batch without company as one for each worker."""
        num_workers = self._placement.workers
        parts = [indices[first::num_workers] for first in range(num_workers)]
        return [part for part in parts if part]

    @contextmanager
    def _call(self) -> Iterator[bool]:
        """Whether there is no other call in progress as this one begins."""
        with self._lock:
            self._num_calls += 1
            is_alone = self._num_calls == 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._num_calls -= 1

    def _batch(self, batch: Sequence[Speech], on_encoded: OnEncoded | None) -> list[Transcript]:
        if self._is_full:
            return [self._full.transcribe(one) for one in batch]
        return self._adaptive.transcribe(batch, on_encoded)

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:
        """Detect the language of one recording, by its mean probability over the stretches.

        Raises:
            ModelError: the engine cannot run the model, for example out of memory.
        """
        if not self._encoder.detects or not speech:
            return None
        try:
            with self._call():
                windows_s = [self._window_s(one) for one in speech]
                found = self._mean_language(speech, windows_s)
                if found[1] < self._windows.sure_language and min(windows_s) < FULL_WINDOW_S:
                    found = self._mean_language(speech, [FULL_WINDOW_S] * len(speech))
        except (RuntimeError, MemoryError) as error:
            raise self._cannot_run(error) from error
        return found

    def _mean_language(
        self, speech: Sequence[Speech], windows_s: Sequence[float]
    ) -> tuple[str, float]:
        """Find the language of the highest mean probability over stretches in these windows."""
        jobs = [
            self._pool.submit(self._encoder.probabilities, one, window_s)
            for one, window_s in zip(speech, windows_s, strict=True)
        ]
        heard = [job.result() for job in jobs]
        return best({code: sum(one[code] for one in heard) / len(heard) for code in heard[0]})

    def _cannot_run(self, error: BaseException) -> ModelError:
        return ModelError(
            f"Whisper {self._model.name!r} cannot run on {self._placement.device} "
            f"with {self._placement.compute_type}: {error}"
        )

    def _window_s(self, speech: Speech) -> float:
        if len(speech.samples) > self.max_speech_s * SAMPLE_RATE:
            raise ModelError(
                f"Whisper hears at most {self.max_speech_s:.0f} s at once, "
                f"not {len(speech.samples) / SAMPLE_RATE:.1f} s: cut it into pieces"
            )
        if self._is_full:
            return FULL_WINDOW_S
        return self._windows.window_s(len(speech.samples), SAMPLE_RATE)

    @cached_property
    def _batch_size(self) -> int:
        return self._options.batch_size or ctranslate.choose_batch_size(
            self._placement, self._encoder.silence.shape[1], self._options.beam_size
        )

    def _batch_of(self, decoder_s: float) -> int:
        """Choose a batch's size by the length of the decoder's input: more of short ones."""
        if self._options.batch_size:
            return self._batch_size
        most = 2.0 if self._placement.kind == "cpu" else 4.0
        return int(self._batch_size * min(most, FULL_WINDOW_S / decoder_s))


def _collected(
    jobs: Sequence[tuple[list[int], Future[list[Transcript]]]], count: int
) -> list[Transcript]:
    """The outcome of each stretch, in order; what is not begun is given up if one fails."""
    transcripts: dict[int, Transcript] = {}
    try:
        for chosen, job in jobs:
            transcripts.update(zip(chosen, job.result(), strict=True))
    finally:
        for _, job in jobs:
            job.cancel()
    return [transcripts[i] for i in range(count)]


def _numbered(on_encoded: OnEncoded, numbers: Sequence[int]) -> OnEncoded:
    """``on_encoded`` of stretches that have other numbers elsewhere."""
    return lambda i, heard: on_encoded(numbers[i], heard)
