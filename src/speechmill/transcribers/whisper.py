"""Whisper (Radford et al., 2022) on CTranslate2, by way of faster-whisper.

Stretches of speech are computed in batches of equal windows that are as long as the speech needs
(``windows``), by as many workers as pay (``ctranslate``). What is suspicious about the outcome, and
everything with ``window="full"``, goes through faster-whisper's own ``transcribe`` in Whisper's
30 s, with the temperature fallback, whose random numbers start anew with each stretch, so that a
rerun gives the same text.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.merging import join_transcripts
from speechmill.models import resolve_whisper
from speechmill.quality import compression_ratio
from speechmill.records import Segment, Speech, Transcript
from speechmill.transcribers import ctranslate, results
from speechmill.transcribers.attention import Attention
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.coverage import cuts_around, divided, pauses
from speechmill.transcribers.hearing import FRAME_RATE, SAMPLE_RATE, Hearing, Spoken, best
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.windows import FULL_WINDOW_S, Heard, WindowOptions

__all__ = ["WhisperTranscriber", "resolve_compute_type"]

VERSION: Final = 6
"""Raised by hand whenever this module gives other text or figures: it is part of the recipe."""

MAX_TOKENS: Final = 448
"""Prompt and text together: what Whisper's decoder has places for."""

MAX_TOLD: Final = 223
"""Tokens of hotwords and initial prompt together; the rest is left for the text."""

PREPENDED: Final = "\"'“¿([{-"
APPENDED: Final = "\"'.。,，!！?？:：”)]}、"

LONE_S: Final = 20.0
"""Seconds of windows without company, after which a model for all cores is worth its loading: the
end of a build is not."""


OnEncoded = Callable[[int, NDArray[Any]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an adaptive window gave: ``transcript`` is None if it is suspicious; ``untold`` is where
    it leaves out voice, (start_s, end_s) from the first sample."""

    spoken: Spoken
    transcript: Transcript | None
    untold: tuple[float, float] | None = None


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
        spoken = self._known_languages()
        self._language = (
            None if options.language is None else language_code(options.language, spoken, model)
        )
        self._allowed = tuple(
            sorted({language_code(language, spoken, model) for language in options.languages})
        )
        if self._language and self._allowed and self._language not in self._allowed:
            raise JobError(
                f"the language {self._language!r} is not one of those allowed: "
                f"{', '.join(self._allowed)}; give one or the other"
            )
        if options.task == "translate" and not self._ctranslate2.is_multilingual:
            raise JobError(
                f"the model {model!r} cannot translate: it is an English-only model; "
                f"take {model.removesuffix('.en')!r}"
            )
        # Sampling from the start: no batch of it would be the same alone.
        self._is_full = options.window == "full" or options.temperature[0] > 0
        self._hotwords, self._initial_prompt = self._told()
        self._hearing = Hearing(
            self._whisper, self._placement, self._windows, self._language, self._allowed
        )
        self._attention = Attention(self._ctranslate2, self._hearing, self._tokenizer)
        self._pool = ThreadPoolExecutor(self._placement.callers, thread_name_prefix="whisper")
        self._lock = threading.Lock()
        self._num_calls = 0
        self._lone_s = 0.0

    def _known_languages(self) -> list[str]:
        """The codes of the languages that the model knows."""
        if not self._ctranslate2.is_multilingual:
            return ["en"]
        token_to_id = self._whisper.hf_tokenizer.token_to_id
        return [code for code in LANGUAGES if token_to_id(f"<|{code}|>") is not None]

    def _told(self) -> tuple[str | None, list[int]]:
        """Hotwords and the tokens of the initial prompt, as far as there is room: the prompt's
        last ones, and before them the first hotwords."""
        hotwords, prompt = self._options.hotwords, self._options.initial_prompt
        for text in (hotwords, prompt):
            if text and "<|" in text:
                raise JobError(
                    f"initial_prompt and hotwords must be plain text, without Whisper's own "
                    f"tokens: there is a '<|' in {text!r}"
                )
        tokenizer = self._tokenizer("en")
        tokens = tokenizer.encode(f" {prompt.strip()}")[-MAX_TOLD:] if prompt else []
        words = tokenizer.encode(f" {hotwords.strip()}") if hotwords else []
        if len(words) + len(tokens) > MAX_TOLD:
            hotwords = tokenizer.decode(words[: MAX_TOLD - len(tokens)]).strip()
        return hotwords or None, tokens

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
    def hearing(self) -> Hearing:
        """The encoder, for those who want what it gives besides the text."""
        return self._hearing

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
            ModelError: the engine cannot run the model, as for want of memory.
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
        is_lone = is_alone and len(speech) == 1
        if is_alone and len(batches) == 1:
            batches = self._shared_out(batches[0])
        compute = self._lone if is_lone else self._batch
        jobs: list[tuple[list[int], Future[list[Transcript]]]] = []
        for chosen in batches:
            batch = [speech[i] for i in chosen]
            heard = None if on_encoded is None else _numbered(on_encoded, chosen)
            jobs.append((chosen, self._pool.submit(compute, batch, heard)))
        if is_lone:
            self._widen(speech[0])
        return _collected(jobs, len(speech))

    def _batches(self, speech: Sequence[Speech]) -> list[list[int]]:
        """The numbers of the stretches that are computed together: those of which the decoder is
        given equally much, by length."""
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

    def _lone(self, batch: Sequence[Speech], on_encoded: OnEncoded | None) -> list[Transcript]:
        """Transcribe a stretch that is alone on this machine."""
        with self._ctranslate2.on_all_cores():
            return self._batch(batch, on_encoded)

    def _widen(self, speech: Speech) -> None:
        """Have a model loaded for stretches that are alone, where they are not few; meanwhile this
        one is computed on one core."""
        window_s = self._window_s(speech)
        self._lone_s += window_s
        if self._lone_s >= LONE_S and self._ctranslate2.may_widen:
            features = np.stack([self._hearing.features(speech, window_s)])
            self._pool.submit(self._ctranslate2.widen, features)

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:
        """The language of one recording, by its mean probability over the stretches.

        Raises:
            ModelError: the engine cannot run the model, as for want of memory.
        """
        if not self._hearing.detects or not speech:
            return None
        try:
            with self._call():
                heard = [
                    self._pool.submit(self._hearing.probabilities, one, self._window_s(one))
                    for one in speech
                ]
                probabilities = [job.result() for job in heard]
        except (RuntimeError, MemoryError) as error:
            raise self._cannot_run(error) from error
        return best(
            {
                code: sum(p[code] for p in probabilities) / len(probabilities)
                for code in probabilities[0]
            }
        )

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
            self._placement, self._hearing.silence.shape[1], self._options.beam_size
        )

    def _batch_of(self, decoder_s: float) -> int:
        """How many of which the decoder is given so much make a batch: more of short ones."""
        if self._options.batch_size:
            return self._batch_size
        most = 2.0 if self._placement.kind == "cpu" else 4.0
        return int(self._batch_size * min(most, FULL_WINDOW_S / decoder_s))

    def _batch(self, batch: Sequence[Speech], on_encoded: OnEncoded | None) -> list[Transcript]:
        """Transcribe stretches of which the decoder is given equally much."""
        if self._is_full:
            return [self._in_full(one, fallback=False) for one in batch]
        windows_s = [self._window_s(one) for one in batch]

        def adaptive(some: Sequence[int]) -> list[Outcome]:
            listening = None if on_encoded is None else _numbered(on_encoded, some)
            return self._adaptive([batch[i] for i in some], [windows_s[i] for i in some], listening)

        outcomes = ctranslate.halving(adaptive, range(len(batch)))
        return [
            self._settled(one, window_s, outcome)
            for one, window_s, outcome in zip(batch, windows_s, outcomes, strict=True)
        ]

    def _settled(self, speech: Speech, window_s: float, outcome: Outcome) -> Transcript:
        """What an adaptive window gave, or what is heard instead where that cannot be believed."""
        known = _known(speech, outcome.spoken)
        if outcome.transcript is None:
            return self._again(known, window_s)
        if outcome.untold is None:
            return outcome.transcript
        return self._in_parts(known, outcome.transcript, outcome.untold)

    def _again(self, speech: Speech, window_s: float) -> Transcript:
        """Transcribe a stretch whose window gave something suspicious: in a wider one, which most
        often will do and is cheap, and if that is no better in the full one."""
        wider_s = window_s + self._windows.wider_s
        if wider_s < FULL_WINDOW_S:
            (outcome,) = self._adaptive([speech], [wider_s])
            if outcome.transcript is not None:
                return self._settled(speech, wider_s, outcome)
        return self._in_full(speech, fallback=True)

    def _in_parts(
        self, speech: Speech, transcript: Transcript, untold: tuple[float, float]
    ) -> Transcript:
        """Transcribe a stretch in parts, so that what its transcript leaves out is one of them; the
        transcript stands if they say no more."""
        voiced = speech.voiced or ()
        cuts_s = cuts_around(untold, voiced, pauses(voiced, self._windows.untold_pause_s))
        if not cuts_s:
            return transcript
        parts = divided(speech, cuts_s, SAMPLE_RATE)
        told = [self._batch([part], None)[0] for _, part in parts]
        joined = join_transcripts([start_s for start_s, _ in parts], told)
        if len(joined.text) <= len(transcript.text):
            return transcript
        return replace(joined, flags=tuple(sorted({*joined.flags, "heard_in_parts"})))

    def _adaptive(
        self,
        batch: Sequence[Speech],
        windows_s: Sequence[float],
        on_encoded: OnEncoded | None = None,
    ) -> list[Outcome]:
        """What each stretch gives in its window."""
        heard = self._hearing.heard(batch, windows_s)
        if on_encoded is not None:
            for i, one_heard in enumerate(heard):
                on_encoded(i, one_heard)
        encoded = self._hearing.with_silence(heard, windows_s)
        output = ctranslate.stored(encoded, self._placement)
        spoken = self._hearing.spoken(batch, windows_s, output)
        prompts = [self._prompt(one.language) for one in spoken]
        room = self._room(windows_s[0], len(prompts[0]))
        found = self._ctranslate2.generate(
            output,
            prompts,
            beam_size=self._options.beam_size,
            patience=results.DECODING["patience"],
            max_length=max(2 * room, len(prompts[0]) + room),  # the text gets half of it at most
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        outcomes = []
        for i, (one, said) in enumerate(zip(batch, spoken, strict=True)):
            transcript = self._believed(one, said, found[i], windows_s[i], room, encoded[i : i + 1])
            untold = None
            if transcript is not None and transcript.text:
                untold = self._attention.untold(
                    one, found[i].sequences_ids[0], said.language, encoded[i : i + 1]
                )
                if self._options.words:
                    transcript = self._with_words(transcript, found[i], encoded[i : i + 1], one)
            outcomes.append(Outcome(said, transcript, untold))
        return outcomes

    def _room(self, window_s: float, prompt: int) -> int:
        """How many tokens the text may have that is heard in such a window, after a prompt of so
        many: half of the decoder's places at most, as with Whisper itself."""
        wanted = self._windows.max_tokens(self._windows.decoder_s(window_s))
        return min(MAX_TOKENS // 2, MAX_TOKENS - prompt, wanted)

    def _believed(
        self,
        speech: Speech,
        spoken: Spoken,
        result: Any,
        window_s: float,
        room: int,
        encoded: NDArray[Any],
    ) -> Transcript | None:
        """What the decoder gave for a stretch, None where it is suspicious; ``room`` is how many
        tokens it could give, of what ``encoded`` holds."""
        tokens = result.sequences_ids[0]
        # As Whisper counts it: the mean over the tokens and the one that ends the text.
        avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        text = self._tokenizer(spoken.language).decode(tokens).strip()
        duration_s = len(speech.samples) / SAMPLE_RATE
        heard = Heard(
            text,
            avg_logprob,
            len(tokens),
            duration_s,
            speech.voiced_s,
            result.no_speech_prob,
            room,
        )
        if self._windows.is_suspicious(heard):
            return None
        if not _has_words(text) or self._is_made_up(heard, spoken.language, encoded):
            return self._no_words(result.no_speech_prob, window_s)
        start_s, end_s = 0.0, duration_s
        if speech.voiced:
            start_s, end_s = speech.voiced[0][0], min(speech.voiced[-1][1], duration_s)
        return Transcript(
            text,
            language=spoken.language,
            language_probability=spoken.probability,
            avg_logprob=avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=compression_ratio(text),
            segments=(Segment(start_s, end_s, text, avg_logprob, result.no_speech_prob),),
            temperature=0.0,
            window_s=window_s,
            flags=results.flags(
                spoken.probability,
                low_confidence=avg_logprob < results.DECODING["log_prob_threshold"],
            ),
        )

    def _no_words(self, no_speech_prob: float, window_s: float, *flags: str) -> Transcript:
        return Transcript(
            "",
            language=self._language,
            no_speech_prob=no_speech_prob,
            window_s=window_s,
            flags=("no_words", *flags),
        )

    def _with_words(
        self, transcript: Transcript, result: Any, encoded: NDArray[Any], speech: Speech
    ) -> Transcript:
        """The transcript with its words' times, by faster-whisper's alignment (cross-attention)."""
        duration_s = len(speech.samples) / SAMPLE_RATE
        (whole,) = transcript.segments
        segment = {
            "tokens": result.sequences_ids[0],
            "start": whole.start_s,
            "end": whole.end_s,
            "seek": 0,
        }
        self._whisper.add_word_timestamps(
            [[segment]],
            self._tokenizer(transcript.language or "en"),
            ctranslate.stored(encoded, self._placement),
            max(2, round(duration_s * FRAME_RATE)),
            PREPENDED,
            APPENDED,
            0.0,
        )
        words = results.words_in_order(segment["words"], duration_s)
        if words:
            whole = replace(whole, start_s=words[0].start_s, end_s=words[-1].end_s)
        return replace(transcript, words=words, segments=(whole,))

    def _in_full(self, speech: Speech, *, fallback: bool) -> Transcript:
        """Transcribe a stretch in Whisper's own window of 30 s, as faster-whisper does."""
        (spoken,) = self._hearing.spoken([speech], [FULL_WINDOW_S], None)
        options = self._options
        samples = np.asarray(speech.samples, np.float32)
        self._ctranslate2.start(_seed(samples))
        try:
            found, _ = self._whisper.transcribe(
                samples,
                language=spoken.language,
                task=options.task,
                beam_size=options.beam_size,
                temperature=list(options.temperature),
                word_timestamps=options.words,
                initial_prompt=self._initial_prompt or None,
                hotwords=self._hotwords,
                suppress_tokens=[-1, *self._numerals],
                **results.DECODING,
            )
            heard = list(found)
        finally:
            no_speech_probs = self._ctranslate2.finish()
        flags = ("window_fallback",) if fallback else ()
        text = "".join(segment.text for segment in heard).strip()
        if not text or (fallback and not _has_words(text)):
            no_speech_prob = results.mean(no_speech_probs) if no_speech_probs else 1.0
            return self._no_words(no_speech_prob, FULL_WINDOW_S, *flags)
        transcript = results.transcript(
            heard, len(samples) / SAMPLE_RATE, spoken, words=options.words
        )
        if fallback and self._is_made_up_in_full(transcript, speech):
            return self._no_words(transcript.no_speech_prob or 0.0, FULL_WINDOW_S, *flags)
        return replace(transcript, flags=tuple(sorted((*transcript.flags, *flags))))

    def _is_made_up_in_full(self, transcript: Transcript, speech: Speech) -> bool:
        """Whether the words of the full window are made up."""
        heard = Heard(
            transcript.text,
            transcript.avg_logprob or 0.0,
            0,
            len(speech.samples) / SAMPLE_RATE,
            speech.voiced_s,
            transcript.no_speech_prob or 0.0,
        )
        window_s = self._windows.window_s(len(speech.samples), SAMPLE_RATE)
        return self._is_made_up(
            heard,
            transcript.language or "en",
            self._hearing.encoded([speech], [window_s]),
        )

    def _is_made_up(self, heard: Heard, language: str, encoded: NDArray[Any]) -> bool:
        """Whether nobody says these words."""
        if self._windows.is_no_speech(heard):
            return True
        if not self._windows.is_doubtful(heard):
            return False
        gain = self._attention.gain(heard.text, language, encoded, heard.duration_s)
        return gain < self._windows.min_gain

    def _tokenizer(self, language: str) -> Tokenizer:
        multilingual = self._ctranslate2.is_multilingual
        return Tokenizer(
            self._whisper.hf_tokenizer,
            multilingual,
            task=self._options.task if multilingual else None,
            language=language if multilingual else None,
        )

    def _prompt(self, language: str) -> list[int]:
        tokens: list[int] = self._whisper.get_prompt(
            self._tokenizer(language),
            self._initial_prompt,
            without_timestamps=True,
            hotwords=self._hotwords,
        )
        return tokens

    @cached_property
    def _suppressed(self) -> list[int]:
        return list(get_suppressed_tokens(self._tokenizer("en"), [-1, *self._numerals]))

    @cached_property
    def _numerals(self) -> list[int]:
        """The tokens that hold a digit or a sign that is read as a word, if they are unwanted."""
        if not self._options.suppress_numerals:
            return []
        tokenizer = self._tokenizer("en")
        return [
            token
            for token in range(tokenizer.eot)
            if any(c.isnumeric() or c in "%$£€" for c in tokenizer.decode([token]))
        ]


def resolve_compute_type(device: str, compute_type: str) -> tuple[str, str]:
    """What ``auto`` means on this machine: the device, and the number format on it.

    Raises:
        JobError: there is no such device here, or it does not support the format.
    """
    placement = ctranslate.place(device, compute_type)
    return placement.device, placement.compute_type


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


def _has_words(text: str) -> bool:
    """Whether it has a letter or a digit of any script."""
    return any(character.isalnum() for character in text)


def _numbered(on_encoded: OnEncoded, numbers: Sequence[int]) -> OnEncoded:
    """``on_encoded`` of stretches that have other numbers elsewhere."""
    return lambda i, heard: on_encoded(numbers[i], heard)


def _known(speech: Speech, spoken: Spoken) -> Speech:
    return replace(speech, language=spoken.language, language_probability=spoken.probability)


def _seed(waveform: NDArray[np.float32]) -> int:
    """A seed that only the samples decide; CTranslate2 takes 2³² − 1 to mean none."""
    digest = hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=4).digest()
    return min(int.from_bytes(digest, "big"), 2**32 - 2)
