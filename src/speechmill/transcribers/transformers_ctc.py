"""Speech recognition by CTC (Graves et al., 2006), on transformers: greedy, one stretch at a time.

Each frame has a token or a blank; equal tokens in a row are one. Such a model writes what it hears
and nothing else: it makes up no words in silence, and has no prompts, languages or translation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.models.checkpoints import load_pretrained
from speechmill.models.torch import TorchEngine
from speechmill.models.weights import Model
from speechmill.records import Segment, Speech, Transcript, Word
from speechmill.text.figures import compression_ratio
from speechmill.transcribers import results
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.torch_whisper import refuse_batches, torch_provenance

__all__ = ["Emission", "TransformersCTC", "emissions", "token_texts", "words_of"]

VERSION: Final = 2
"""Raised by hand whenever this module gives other text or figures: it is part of the recipe."""

MIN_SPEECH_S: Final = 0.1
"""No word is shorter, and the models' convolutions need some samples."""

# Options that a CTC model does not have: only the default is accepted, or an equivalent of none.
_UNSUPPORTED: Final[Mapping[str, tuple[object, ...]]] = {
    "task": (),
    "languages": (),
    "window": (),
    "beam_size": (1,),
    "temperature": ((0.0,),),
    "initial_prompt": ("",),
    "hotwords": ("",),
    "suppress_numerals": (),
}


@dataclass(frozen=True, slots=True)
class Emission:
    """An emitted token, its frames (``first`` up to, not including, ``last``) and their log
    probabilities."""

    token: int
    first: int
    last: int
    logprobs: tuple[float, ...]


class TransformersCTC:
    """A CTC checkpoint. See ``speechmill.transcribers.open_transcriber`` for the options.

    Raises:
        JobError: an option that CTC has no use for.
        ModelError: the weights cannot be read, or are not whole.
    """

    max_speech_s = 30.0  # attention grows with the square of it
    needs_voice = False

    def __init__(
        self, name: str, weights: Model, engine: TorchEngine, options: TranscriberOptions
    ) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        refuse_batches(name, options)
        default = TranscriberOptions()
        for option, harmless in _UNSUPPORTED.items():
            value = getattr(options, option)
            if value not in (getattr(default, option), *harmless):
                raise JobError(
                    f"the model {weights.name!r} is a CTC model, which has no use for {option} "
                    f"({value!r}): leave it out, or take a Whisper model"
                )
        self._name, self._weights, self._engine = name, weights, engine
        self._words = options.words
        self._language = (
            language_code(options.language, LANGUAGES, weights.name) if options.language else None
        )
        self._extractor = load_pretrained(AutoFeatureExtractor, weights)
        self._tokenizer = load_pretrained(AutoTokenizer, weights)
        self._model = load_pretrained(AutoModelForCTC, weights, dtype=engine.dtype).to(
            engine.device
        )
        self.sample_rate = int(self._extractor.sampling_rate)
        config = self._model.config
        self._blank = int(config.pad_token_id)
        self._hop = int(getattr(config, "inputs_to_logits_ratio", 0) or 0)
        self._pieces = token_texts(self._tokenizer, int(config.vocab_size))

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values."""
        return {
            "transcriber": self._name,
            "version": VERSION,
            "model": dict(self._weights.digests),
            "decoding": "ctc greedy",
            "language": self._language,
            "words": self._words,
            "compute_type": self._engine.compute_type,
        }

    @property
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it."""
        return torch_provenance(self._name, self._weights, self._engine)

    def transcribe(self, speech: Sequence[Speech]) -> list[Transcript]:
        """Transcribe each stretch of speech, none longer than 30 s.

        Raises:
            ModelError: the engine cannot run the model, for example out of memory.
        """
        return [self._transcribe(np.array(one.samples, np.float32)) for one in speech]

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:  # noqa: ARG002
        """None: a CTC model knows no languages."""
        return None

    def _transcribe(self, samples: NDArray[np.float32]) -> Transcript:
        duration_s = len(samples) / self.sample_rate
        if duration_s > self.max_speech_s:
            raise ModelError(
                f"{self._weights.name!r} hears at most {self.max_speech_s:.0f} s at once, not "
                f"{duration_s:.1f} s: cut it into pieces"
            )
        if duration_s < MIN_SPEECH_S:
            return results.no_words(self._language, 1.0, 0.0)
        with self._engine.running(self._weights.name, samples):
            logprobs = self._logprobs(samples)
        # The lowest probability of a blank: most frames of clear speech are blanks, so a mean says
        # little.
        no_speech_prob = float(np.exp(min(logprobs[:, self._blank].min(), 0.0)))
        frame_s = self._hop / self.sample_rate or duration_s / len(logprobs)
        emitted = [e for e in emissions(logprobs, self._blank) if self._pieces[e.token]]
        words = words_of(emitted, self._pieces, frame_s)
        words = tuple(
            replace(w, start_s=min(w.start_s, duration_s), end_s=min(w.end_s, duration_s))
            for w in words
        )
        text = " ".join(word.word for word in words)
        nothing = results.no_words(self._language, no_speech_prob, duration_s)
        if not text:
            return nothing
        avg_logprob = float(np.mean([p for e in emitted for p in e.logprobs]))
        ratio = compression_ratio(text)
        segment = Segment(words[0].start_s, words[-1].end_s, text, avg_logprob, no_speech_prob)
        return replace(
            nothing,
            text=text,
            avg_logprob=avg_logprob,
            compression_ratio=ratio,
            segments=(segment,),
            words=words if self._words else None,
            flags=results.flags(
                None,
                repetitive=ratio > results.MAX_COMPRESSION_RATIO,
                low_confidence=avg_logprob < results.MIN_LOGPROB,
            ),
        )

    def _logprobs(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the log probability of each token in each frame, float32 [frames, vocabulary]."""
        inputs = self._extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt")
        tensors = {
            name: value.to(self._engine.device, self._engine.dtype)
            if value.is_floating_point()
            else value.to(self._engine.device)
            for name, value in inputs.items()
        }
        logits = self._model(**tensors).logits[0]
        return np.asarray(logits.float().log_softmax(-1).cpu().numpy(), np.float32)


def emissions(logprobs: NDArray[np.float32], blank: int) -> list[Emission]:
    """Take the most probable token of each frame; merge equal ones in a row, and drop blanks.

    Args:
        logprobs: [frames, vocabulary].
        blank: the token that means none.
    """
    best = logprobs.argmax(-1)
    edges = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
    return [
        Emission(
            int(best[first]),
            first,
            last,
            tuple(float(p) for p in logprobs[first:last, best[first]]),
        )
        for first, last in pairwise(edges)
        if last > first and best[first] != blank
    ]


def words_of(
    emitted: Sequence[Emission], pieces: Sequence[str], frame_s: float
) -> tuple[Word, ...]:
    """Join emitted tokens to words.

    Args:
        emitted: the tokens, in order.
        pieces: each token's text; a space begins a new word.
        frame_s: seconds a frame.

    Returns:
        Words with their times from the first frame, and the geometric mean of the probabilities
        of their frames.
    """
    groups: list[list[tuple[Emission, str]]] = []
    apart = True
    for emission in emitted:
        for i, letters in enumerate(pieces[emission.token].split(" ")):
            apart = apart or i > 0
            if letters:
                if apart:
                    groups.append([])
                groups[-1].append((emission, letters))
                apart = False
    return tuple(
        Word(
            "".join(letters for _, letters in group),
            group[0][0].first * frame_s,
            group[-1][0].last * frame_s,
            float(np.exp(np.mean([p for emission, _ in group for p in emission.logprobs]))),
        )
        for group in groups
    )


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """List the text of each token; "" for special ones.

    Words are separated by a token of their own (``|``), or begin with ▁ as in SentencePiece.
    """
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    special = set(tokenizer.all_special_tokens) - {delimiter}
    lower = bool(getattr(tokenizer, "do_lower_case", False))
    pieces = []
    for text in tokenizer.convert_ids_to_tokens(range(size)):
        if text is None or text in special:
            pieces.append("")
        else:
            piece = " " if text == delimiter else text.replace("▁", " ")
            pieces.append(piece.lower() if lower else piece)
    return pieces
