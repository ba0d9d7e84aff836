"""Prompts, tokenizers and suppressed tokens of a Whisper model."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens

from speechmill.errors import JobError
from speechmill.transcribers.base import TranscriberOptions

__all__ = ["WhisperTokens"]

MAX_PROMPT: Final = 223
"""Tokens of hotwords and initial prompt together. faster-whisper gives 223 to each, which leaves no
position of the decoder's 448 for the text where both are long."""


class WhisperTokens:
    """A model's prompts and suppressed tokens, as the options ask for them.

    ``hotwords`` and the tokens of the initial prompt, ``initial_prompt``, are cut to
    ``MAX_PROMPT``:
    the prompt's last tokens, and before them the first hotwords.

    Args:
        whisper: faster-whisper's model.
        options: of the transcriber.

    Raises:
        JobError: the prompt or the hotwords hold tokens of Whisper's own.
    """

    def __init__(self, whisper: Any, options: TranscriberOptions) -> None:
        self._whisper = whisper
        self._options = options
        self.hotwords, self.initial_prompt = self._cut_prompts()

    def _cut_prompts(self) -> tuple[str | None, list[int]]:
        """Cut hotwords and the tokens of the initial prompt to ``MAX_PROMPT``."""
        hotwords, prompt = self._options.hotwords, self._options.initial_prompt
        for text in (hotwords, prompt):
            if text and "<|" in text:
                raise JobError(
                    f"initial_prompt and hotwords must be plain text, without Whisper's own "
                    f"tokens: there is a '<|' in {text!r}"
                )
        tokenizer = self.tokenizer("en")
        tokens = tokenizer.encode(f" {prompt.strip()}")[-MAX_PROMPT:] if prompt else []
        words = tokenizer.encode(f" {hotwords.strip()}") if hotwords else []
        if len(words) + len(tokens) > MAX_PROMPT:
            hotwords = tokenizer.decode(words[: MAX_PROMPT - len(tokens)]).strip()
        return hotwords or None, tokens

    def tokenizer(self, language: str) -> Tokenizer:
        """Make the tokenizer of a language, given by its code."""
        multilingual = self._whisper.model.is_multilingual
        return Tokenizer(
            self._whisper.hf_tokenizer,
            multilingual,
            task=self._options.task if multilingual else None,
            language=language if multilingual else None,
        )

    def prompt(self, language: str) -> list[int]:
        """Make the tokens that the decoder is given before a text in a language."""
        tokens: list[int] = self._whisper.get_prompt(
            self.tokenizer(language),
            self.initial_prompt,
            without_timestamps=True,
            hotwords=self.hotwords,
        )
        return tokens

    @cached_property
    def suppressed(self) -> list[int]:
        """Tokens that no text may hold."""
        return list(get_suppressed_tokens(self.tokenizer("en"), [-1, *self.numerals]))

    @cached_property
    def numerals(self) -> list[int]:
        """The tokens that hold a digit or a sign that is read as a word, if they are unwanted."""
        if not self._options.suppress_numerals:
            return []
        tokenizer = self.tokenizer("en")
        return [
            token
            for token in range(tokenizer.eot)
            if any(c.isnumeric() or c in "%$£€" for c in tokenizer.decode([token]))
        ]
