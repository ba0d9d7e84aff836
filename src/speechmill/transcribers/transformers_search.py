"""Whisper's tokens on transformers: special tokens, beam search and sampling under Whisper's rules,
and the segmentation of a window at timestamps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from speechmill.errors import ModelError
from speechmill.models.weights import Model
from speechmill.transcribers.languages import LANGUAGES

__all__ = ["TIMESTAMP_S", "SpecialTokens", "TokenSearch", "cut_at_timestamps", "special_tokens"]

TIMESTAMP_S: Final = 0.02
"""Seconds from one timestamp token to the next, and of one frame of the encoder's output."""

FIRST_TIMESTAMP_MAX: Final = 50
"""The latest first timestamp (1 s), where the checkpoint states no other: Whisper's default."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The ids of a checkpoint's special tokens."""

    start: int
    previous: int
    no_timestamps: int
    no_speech: int | None
    end: int
    tasks: Mapping[str, int]
    languages: Mapping[str, int]


class TokenSearch:
    """Searches the tokens of a window, by beams or by sampling.

    Whisper's own ``generate`` in transformers does not return the temperature that it took, nor the
    text's probability; so the generation beneath it is called, with Whisper's rules.

    Args:
        model: ``WhisperForConditionalGeneration``.
        tokens: its special tokens.
        generation: its generation_config.json.
        unwanted: tokens to suppress, besides those of ``generation``.
    """

    def __init__(
        self,
        model: Any,
        tokens: SpecialTokens,
        generation: Mapping[str, Any],
        unwanted: Collection[int],
    ) -> None:
        self._model, self._tokens, self._generation = model, tokens, generation
        self._unwanted = sorted({*(generation.get("suppress_tokens") or ()), *unwanted})

    def __call__(
        self,
        encoded: Any,
        prompt: Sequence[int],
        *,
        temperature: float,
        beam_size: int,
        best_of: int,
    ) -> tuple[list[int], float]:
        """Find the best tokens, without prompt and end, and their mean log probability with the
        end:
        by ``beam_size`` beams at temperature 0, else of ``best_of`` samples."""
        import torch
        from transformers import GenerationConfig, GenerationMixin

        positions = self._model.config.max_target_positions
        samples = temperature > 0
        beams = 1 if samples else beam_size
        config = GenerationConfig(
            do_sample=samples,
            temperature=temperature if samples else None,
            top_k=0 if samples else None,
            num_beams=beams,
            early_stopping=beams > 1,
            num_return_sequences=best_of if samples else 1,
            max_new_tokens=min(positions // 2, positions - len(prompt)),
            decoder_start_token_id=self._tokens.start,
            eos_token_id=self._tokens.end,
            pad_token_id=self._tokens.end,
            return_dict_in_generate=True,
            output_scores=True,
            renormalize_logits=True,
        )
        output = GenerationMixin.generate(
            self._model,
            encoder_outputs=encoded,
            decoder_input_ids=torch.tensor([list(prompt)], device=self._model.device),
            generation_config=config,
            logits_processor=self._logits_processors(len(prompt)),
        )
        found = [
            sequence[: (*sequence, self._tokens.end).index(self._tokens.end)]
            for sequence in output.sequences[:, len(prompt) :].tolist()
        ]
        if beams > 1:
            logprobs = output.sequences_scores.tolist()
        else:
            logprobs = self._avg_logprobs(output, found, temperature if samples else 1.0)
        best = int(np.argmax(logprobs))
        return found[best], logprobs[best]

    def _avg_logprobs(
        self, output: Any, found: Sequence[Sequence[int]], temperature: float
    ) -> list[float]:
        """Compute each sequence's mean log probability, its end included, at temperature 1."""
        means = []
        for i, tokens in enumerate(found):
            ended = (*tokens, self._tokens.end)
            logprobs = [
                (scores[i].float() * temperature).log_softmax(-1)[token].item()
                for scores, token in zip(output.scores, ended, strict=False)
            ]
            means.append(float(np.mean(logprobs)))
        return means

    def _logits_processors(self, begin: int) -> Any:
        """Make the processors that suppress unwanted tokens, and timestamps out of order."""
        from transformers import GenerationConfig, LogitsProcessorList
        from transformers.generation import (
            SuppressTokensAtBeginLogitsProcessor,
            SuppressTokensLogitsProcessor,
            WhisperTimeStampLogitsProcessor,
        )

        generation, tokens = self._generation, self._tokens
        first = generation.get("max_initial_timestamp_index", FIRST_TIMESTAMP_MAX)
        timestamps = GenerationConfig(
            eos_token_id=tokens.end,
            no_timestamps_token_id=tokens.no_timestamps,
            max_initial_timestamp_index=first,
        )
        at_begin = generation.get("begin_suppress_tokens") or [tokens.end]
        device = self._model.device
        rules = [
            SuppressTokensAtBeginLogitsProcessor(at_begin, begin, device=device),
            SuppressTokensLogitsProcessor(self._unwanted or [tokens.start], device=device),
            WhisperTimeStampLogitsProcessor(timestamps, begin_index=begin),
        ]
        return LogitsProcessorList(rules)


def cut_at_timestamps(
    tokens: Sequence[int], zero: int, window_s: float
) -> tuple[list[tuple[float, float, list[int]]], float | None]:
    """Cut the tokens of a window into spans, as Whisper's authors do.

    Args:
        tokens: text and timestamps.
        zero: the token of 0 s; those above it are later times.
        window_s: how much of the window is speech.

    Returns:
        The spans, as (start_s, end_s, tokens); and where the next window starts (s), if text
        follows the last two timestamps in a row: it is unfinished, and not among the spans.
    """

    def time_s(token: int) -> float:
        return max(0, token - zero) * TIMESTAMP_S

    is_time = [token >= zero for token in tokens]
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(is_time)) if a and b]
    if not cuts:
        last = next((t for t in reversed(tokens) if t > zero), None)
        return [(0.0, window_s if last is None else time_s(last), list(tokens))], None
    ends_alone = is_time[-2:] == [False, True]
    if ends_alone:
        cuts.append(len(tokens))
    spans = [
        (time_s(tokens[first]), time_s(tokens[last - 1]), list(tokens[first:last]))
        for first, last in pairwise([0, *cuts])
    ]
    return spans, None if ends_alone else time_s(tokens[cuts[-1] - 1])


def special_tokens(vocabulary: Mapping[str, int], weights: Model) -> SpecialTokens:
    """Look up the ids of the tokens that Whisper needs.

    Raises:
        ModelError: the tokenizer lacks some of them.
    """
    needed = ("startoftranscript", "startofprev", "notimestamps", "endoftext")
    try:
        start, previous, no_timestamps, end = (vocabulary[f"<|{name}|>"] for name in needed)
    except KeyError as error:
        raise ModelError(
            f"the tokenizer of {weights.name!r} in {weights.folder} lacks {error}: it is not "
            "Whisper's; add the right one"
        ) from error
    return SpecialTokens(
        start,
        previous,
        no_timestamps,
        vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>")),
        end,
        {task: vocabulary.get(f"<|{task}|>", start) for task in ("transcribe", "translate")},
        {code: vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary},
    )
