"""Alignment of a finished text with the audio by Whisper's decoder: when each token is said, and
how likely it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray

from speechmill.records import Speech
from speechmill.transcribers import ctranslate
from speechmill.transcribers.coverage import Span, longest_untold, pauses
from speechmill.transcribers.encoder import FRAME_RATE, SAMPLE_RATE, SpeechEncoder

__all__ = ["Attention"]

MIN_PROBABILITY: Final = 1e-10
"""No token counts as less likely: the logarithm of 0 is infinite."""

MAX_ALIGNED_TOKENS: Final = 224
"""Tokens of a text that are aligned: half of the decoder's positions, its limit for one window. The
full window's text may be longer, because it continues with the rest of the audio."""


class Attention:
    """Aligns texts, one stretch at a time, so that no result depends on its neighbours.

    Args:
        model: CTranslate2's Whisper.
        encoder: of the same model.
        tokenizer: makes the tokenizer of a language code.
    """

    def __init__(
        self, model: Any, encoder: SpeechEncoder, tokenizer: Callable[[str], Tokenizer]
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._tokenizer = tokenizer

    def untold(
        self, speech: Speech, tokens: Sequence[int], language: str, encoded: NDArray[Any]
    ) -> Span | None:
        """Find where a text leaves out voice, (start_s, end_s) from the first sample.

        None if it does not, or if the stretch has no pause: texts end early after pauses.

        Args:
            speech: the stretch.
            tokens: the text's.
            language: its code.
            encoded: the decoder's input, [1, frames, width].
        """
        windows, voiced = self._encoder.windows, speech.voiced or ()
        if not pauses(voiced, windows.untold_pause_s):
            return None
        duration_s = len(speech.samples) / SAMPLE_RATE
        (aligned,) = self._align(tokens, language, encoded, duration_s)
        starts = dict(reversed(aligned.alignments))  # the first frame of each token
        starts_s = [2 * starts[token] / FRAME_RATE for token in sorted(starts)]
        voice_s, span = longest_untold(starts_s, voiced, duration_s)
        return span if voice_s > windows.max_untold_s else None

    def gain(
        self, tokens: Sequence[int], language: str, encoded: NDArray[Any], duration_s: float
    ) -> float:
        """Compute how much likelier the audio makes a text than silence does, in nats per token.

        The text is not empty; of a long one only the beginning is aligned. Arguments as of
        ``untold``.
        """
        silence = self._encoder.silence[None, : encoded.shape[1]]
        both = np.concatenate((encoded, silence))
        here, nowhere = (
            np.log(np.maximum(aligned.text_token_probs, MIN_PROBABILITY))
            for aligned in self._align(tokens[:MAX_ALIGNED_TOKENS], language, both, duration_s)
        )
        return float(np.mean(here - nowhere))

    def _align(
        self, tokens: Sequence[int], language: str, encoded: NDArray[Any], duration_s: float
    ) -> Any:
        """Align a text with each of the encoder's outputs."""
        return self._model.align(
            ctranslate.to_storage(encoded, self._encoder.placement),
            self._tokenizer(language).sot_sequence,
            [list(tokens)] * len(encoded),
            [max(2, round(duration_s * FRAME_RATE))] * len(encoded),
        )
