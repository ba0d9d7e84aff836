"""What Whisper's decoder tells of a text that it is given back together with the audio: when each
token is said, and how likely it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray

from speechmill.records import Speech
from speechmill.transcribers import ctranslate
from speechmill.transcribers.coverage import Span, longest_untold, pauses
from speechmill.transcribers.hearing import FRAME_RATE, SAMPLE_RATE, Hearing

__all__ = ["Attention"]

LEAST: Final = 1e-10
"""No token counts as less likely."""

MOST: Final = 224
"""Tokens that are given back to the decoder: half of its places, as it has for a text. The full
window may give more, as it goes on with the rest of the audio."""


class Attention:
    """Asks the decoder. One stretch at a time, so that no answer depends on others.

    Args:
        model: CTranslate2's.
        hearing: the encoder that is before it.
        tokenizer: of a language.
    """

    def __init__(self, model: Any, hearing: Hearing, tokenizer: Callable[[str], Tokenizer]) -> None:
        self._model = model
        self._hearing = hearing
        self._tokenizer = tokenizer

    def untold(
        self, speech: Speech, tokens: Sequence[int], language: str, encoded: NDArray[Any]
    ) -> Span | None:
        """Where a text leaves out voice, (start_s, end_s) from the first sample; None if it does
        not, or where there is no pause, after which that happens.

        Args:
            speech: the stretch.
            tokens: the text's.
            language: its code.
            encoded: what the decoder was given, [1, frames, width].
        """
        windows, voiced = self._hearing.windows, speech.voiced or ()
        if not pauses(voiced, windows.untold_pause_s):
            return None
        duration_s = len(speech.samples) / SAMPLE_RATE
        (aligned,) = self._aligned(tokens, language, encoded, duration_s)
        starts = dict(reversed(aligned.alignments))  # the first frame of each token
        starts_s = [2 * starts[token] / FRAME_RATE for token in sorted(starts)]
        voice_s, span = longest_untold(starts_s, voiced, duration_s)
        return span if voice_s > windows.max_untold_s else None

    def gain(
        self, tokens: Sequence[int], language: str, encoded: NDArray[Any], duration_s: float
    ) -> float:
        """How much likelier the audio makes a text than silence does, in nats a token.

        The text is not empty, and its beginning will do; the arguments are those of ``untold``.
        """
        silence = self._hearing.silence[None, : encoded.shape[1]]
        both = np.concatenate((encoded, silence))
        here, nowhere = (
            np.log(np.maximum(aligned.text_token_probs, LEAST))
            for aligned in self._aligned(tokens[:MOST], language, both, duration_s)
        )
        return float(np.mean(here - nowhere))

    def _aligned(
        self, tokens: Sequence[int], language: str, encoded: NDArray[Any], duration_s: float
    ) -> Any:
        """What the decoder says of a text, given each of what is encoded."""
        return self._model.align(
            ctranslate.stored(encoded, self._hearing.placement),
            self._tokenizer(language).sot_sequence,
            [list(tokens)] * len(encoded),
            [max(2, round(duration_s * FRAME_RATE))] * len(encoded),
        )
