"""Whisper checkpoints on transformers: windows, temperatures and timestamps as Whisper's authors
have them, with transformers' own beam search and sampling for the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.models.checkpoints import (
    alignment_heads,
    cannot_load,
    load_pretrained,
    read_json,
)
from speechmill.models.torch import TorchEngine
from speechmill.models.weights import Model
from speechmill.records import Word
from speechmill.text.figures import compression_ratio
from speechmill.transcribers.alignment import UNSPACED, first_frames, smoothed, split_words
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.results import DecodedSegment
from speechmill.transcribers.torch_whisper import DECODING, DecodedSpeech, TorchWhisper
from speechmill.transcribers.transformers_search import (
    TIMESTAMP_S,
    TokenSearch,
    cut_at_timestamps,
    special_tokens,
)

__all__ = ["TransformersWhisper"]

VERSION: Final = 2
"""Raised by hand whenever this module gives other text or figures: it is part of the recipe."""

SAMPLE_RATE: Final = 16_000
MIN_WINDOW_S: Final = 0.1  # of speech: no word is shorter
MULTILINGUAL_VOCABULARY: Final = 51_865  # tokens; English-only models have one less


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A decoded window: tokens without the prompt and the end, their text and confidence."""

    tokens: list[int]
    text: str
    avg_logprob: float
    temperature: float


class TransformersWhisper(TorchWhisper):
    """A Whisper checkpoint. See ``speechmill.transcribers.open_transcriber`` for the options.

    Raises:
        JobError: an option that the checkpoint cannot do.
        ModelError: the weights cannot be read, or are not whole.
    """

    def __init__(
        self, name: str, weights: Model, engine: TorchEngine, options: TranscriberOptions
    ) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer, GenerationConfig
        from transformers import WhisperForConditionalGeneration as Whisper

        self._heads = alignment_heads(weights, words=options.words)
        self._generation = read_json(weights.folder / "generation_config.json")
        self._extractor = load_pretrained(AutoFeatureExtractor, weights)
        if self._extractor.sampling_rate != SAMPLE_RATE:
            raise cannot_load(
                weights, f"it wants {self._extractor.sampling_rate} Hz; Whisper is for 16,000 Hz"
            )
        self._tokenizer = load_pretrained(AutoTokenizer, weights)
        self._tokens = special_tokens(self._tokenizer.get_vocab(), weights)
        # Only the plain attention returns its weights.
        attention = "eager" if options.words else "sdpa"
        self._model = load_pretrained(
            Whisper, weights, dtype=engine.dtype, attn_implementation=attention
        ).to(engine.device)
        self._model.generation_config = GenerationConfig()  # each call sets all of it
        multilingual = self._generation.get(
            "is_multilingual", self._model.config.vocab_size >= MULTILINGUAL_VOCABULARY
        )
        super().__init__(
            name,
            VERSION,
            weights,
            engine,
            known=list(self._tokens.languages) if multilingual else ["en"],
            multilingual=bool(multilingual),
            options=options,
        )
        self._search = TokenSearch(self._model, self._tokens, self._generation, self._numerals())

    def _probabilities(self, samples: NDArray[np.float32]) -> dict[str, float]:
        return self._languages(self._encode(samples))

    def _languages(self, encoded: Any) -> dict[str, float]:
        """Compute each language's probability in an encoded window, by code."""
        logits = self._model(
            encoder_outputs=encoded,
            decoder_input_ids=self._ids([self._tokens.start]),
        ).logits[0, 0]
        codes = list(self._tokens.languages)
        shares = logits[[self._tokens.languages[code] for code in codes]].float().softmax(-1)
        return dict(zip(codes, shares.tolist(), strict=True))

    def _decode_speech(self, samples: NDArray[np.float32], language: str) -> DecodedSpeech:
        pieces: list[DecodedSegment] = []
        no_speech_probs: list[float] = []
        languages: dict[str, float] = {}
        prompt = self._prompt_tokens(language)
        start_s, end_s = 0.0, len(samples) / SAMPLE_RATE
        while end_s - start_s >= MIN_WINDOW_S:
            window = samples[round(start_s * SAMPLE_RATE) :]
            encoded = self._encode(window)
            if self._multilingual and not languages:
                languages = self._languages(encoded)
            no_speech_probs.append(self._no_speech_prob(encoded, prompt))
            decoded = self._decode(encoded, prompt, no_speech_probs[-1])
            if self._is_silent(decoded, no_speech_probs[-1]):
                break
            spans, goes_on_s = cut_at_timestamps(
                decoded.tokens, self._tokens.no_timestamps + 1, end_s - start_s
            )
            pieces += self._segments(
                encoded, spans, decoded, (start_s, end_s), language, no_speech_probs[-1]
            )
            if not goes_on_s:
                break
            start_s += goes_on_s
        return DecodedSpeech(tuple(pieces), tuple(no_speech_probs) or (1.0,), languages)

    def _encode(self, samples: NDArray[np.float32]) -> Any:
        """Encode a window of 30 s that begins with ``samples``."""
        features = self._extractor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features
        return self._model.get_encoder()(features.to(self._engine.device, self._engine.dtype))

    def _ids(self, tokens: Sequence[int]) -> Any:
        import torch

        return torch.tensor([list(tokens)], device=self._engine.device)

    def _prompt_tokens(self, language: str) -> list[int]:
        """Make the decoder's prompt: the text to continue, if any, language and task."""
        head = self._head(language)
        if (text := self._prompt()) is None:
            return head
        room = self._model.config.max_target_positions // 2 - 1
        before = self._tokenizer.encode(f" {text}", add_special_tokens=False)
        return [self._tokens.previous, *before[-room:], *head]

    def _head(self, language: str) -> list[int]:
        """Make the tokens that begin a text; English-only models have no language and task."""
        tokens = self._tokens
        if not self._multilingual:
            return [tokens.start]
        return [tokens.start, tokens.languages[language], tokens.tasks[self._options.task]]

    def _no_speech_prob(self, encoded: Any, prompt: list[int]) -> float:
        """Compute the probability, at the start token, that a window holds no speech."""
        if self._tokens.no_speech is None:
            return 0.0
        head = prompt[: prompt.index(self._tokens.start) + 1]
        logits = self._model(encoder_outputs=encoded, decoder_input_ids=self._ids(head)).logits
        return float(logits[0, -1].float().softmax(-1)[self._tokens.no_speech])

    def _is_silent(self, decoded: _Decoded, no_speech_prob: float) -> bool:
        return bool(
            no_speech_prob > DECODING["no_speech_threshold"]
            and decoded.avg_logprob <= DECODING["logprob_threshold"]
        )

    def _decode(self, encoded: Any, prompt: list[int], no_speech_prob: float) -> _Decoded:
        """Decode a window, at one temperature after another until the text is sure enough."""
        for temperature in self._options.temperature:
            tokens, avg_logprob = self._search(
                encoded,
                prompt,
                temperature=temperature,
                beam_size=self._options.beam_size,
                best_of=DECODING["best_of"],
            )
            text = self._text([t for t in tokens if t < self._tokens.end]).strip()
            decoded = _Decoded(tokens, text, avg_logprob, temperature)
            is_poor = decoded.avg_logprob < DECODING["logprob_threshold"]
            is_loop = (
                decoded.text != ""
                and compression_ratio(decoded.text) > DECODING["compression_ratio_threshold"]
            )
            if not is_loop and not is_poor:
                break
            if is_poor and no_speech_prob > DECODING["no_speech_threshold"]:
                break  # silence: no temperature makes words of it
        return decoded

    def _numerals(self) -> list[int]:
        """The tokens of numerals, if they are unwanted."""
        if not self._options.suppress_numerals:
            return []
        return [t for t in range(self._tokens.end) if self._is_numeral(self._text([t]))]

    def _text(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _segments(
        self,
        encoded: Any,
        spans: Sequence[tuple[float, float, list[int]]],
        decoded: _Decoded,
        window: tuple[float, float],
        language: str,
        no_speech_prob: float,
    ) -> list[DecodedSegment]:
        """Make segments of a window's spans with text, with the times of their words if wanted."""
        texts = [[t for t in tokens if t < self._tokens.end] for _, _, tokens in spans]
        kept = [
            (span, text)
            for span, text in zip(spans, texts, strict=True)
            if span[1] > span[0] and self._text(text).strip()
        ]
        start_s, num_frames = window[0], max(1, round((window[1] - window[0]) / TIMESTAMP_S))
        words: list[tuple[Word, int]] = []
        if self._options.words and kept:
            all_tokens = [token for _, text in kept for token in text]
            words = self._align_words(encoded, all_tokens, num_frames, start_s, language)
        pieces = []
        for (begin_s, end_s, _), text in kept:
            own: list[Word] = []
            room = len(text)
            while words and room > 0:
                word, count = words.pop(0)
                own.append(word)
                room -= count
            pieces.append(
                DecodedSegment(
                    start_s + begin_s,
                    start_s + end_s,
                    self._text(text),
                    decoded.avg_logprob,
                    no_speech_prob,
                    decoded.temperature,
                    len(text),
                    tuple(own),
                )
            )
        return pieces

    def _align_words(
        self, encoded: Any, text: list[int], num_frames: int, start_s: float, language: str
    ) -> list[tuple[Word, int]]:
        """Find the times of the words of a window's text. Also returns each word's tokens."""
        tokens, head = self._tokens, self._head(language)
        ids = [*head, tokens.no_timestamps, *text, tokens.end]
        output = self._model(
            encoder_outputs=encoded, decoder_input_ids=self._ids(ids), output_attentions=True
        )
        import torch

        attention = torch.stack(
            [output.cross_attentions[layer][0, head] for layer, head in self._heads]
        )
        # The row of each token is that of the one before it, which it is predicted at.
        gain = smoothed(attention[:, len(head) : -1, :num_frames])
        begins = [frame * TIMESTAMP_S + start_s for frame in first_frames(gain)]
        shares = output.logits[0, len(head) : -2, : tokens.end].float().softmax(-1)
        probabilities = shares[range(len(text)), text].tolist()
        words: list[tuple[Word, int]] = []
        at = 0
        for word, count in split_words(text, self._text, spaced=language not in UNSPACED):
            probability = float(np.mean(probabilities[at : at + count]))
            words.append((Word(word, begins[at], begins[at + count], probability), count))
            at += count
        return words
