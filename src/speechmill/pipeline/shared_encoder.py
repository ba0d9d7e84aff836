"""Tokens of rows out of what the transcriber's encoder has computed of them anyway."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from speechmill.pipeline.intake import ReadyPiece, ReadyRow
from speechmill.records import Speech, Transcript
from speechmill.tokenizers.base import TakesEncoded, Tokenizer
from speechmill.transcribers.base import SharesEncoder, Transcriber

__all__ = ["SharedEncoder"]


class SharedEncoder:
    """A transcriber, and those tokenizers of its job that take what its encoder computes.

    ``__contains__`` takes a tokenizer's number in the job: its rows are tokenized after they are
    transcribed, and only those that ``left`` names.
    """

    def __init__(self, transcriber: Transcriber, tokenizers: Sequence[Tokenizer]) -> None:
        self._transcriber = transcriber
        self._sharing: SharesEncoder | None = None
        self._takers: dict[int, TakesEncoded] = {}
        for index, tokenizer in enumerate(tokenizers):
            if isinstance(tokenizer, TakesEncoded):
                tokenizer.attach(transcriber)
                if tokenizer.shares(transcriber):
                    self._sharing = transcriber
                    self._takers[index] = tokenizer

    def __contains__(self, index: int) -> bool:
        return index in self._takers

    def transcribe(
        self, pieces: Sequence[ReadyPiece], speech: Sequence[Speech]
    ) -> list[Transcript]:
        """Transcribe the speech of these pieces, and make the tokens that come of it.

        Raises:
            ModelError: the engine cannot run the model.
        """
        if self._sharing is None:
            return self._transcriber.transcribe(speech)

        def on_encoded(number: int, encoded: NDArray[Any]) -> None:
            piece, given = pieces[number], speech[number]
            row = piece.row
            # Only where the transcriber is given the very samples that a tokenizer is given.
            if (
                len(row.pieces) > 1
                or piece.piece.start_s != row.row.start_s
                or len(given.samples) != len(row.samples(self._transcriber.sample_rate))
            ):
                return
            started = time.perf_counter()
            for index, tokenizer in self._takers.items():
                row.codes[index] = tokenizer.from_encoded(encoded, len(given.samples))
            with row.lock:
                row.tokenize_s += time.perf_counter() - started

        return self._sharing.transcribe(speech, on_encoded=on_encoded)

    def left(self, index: int, rows: Sequence[ReadyRow]) -> list[ReadyRow]:
        """The rows that are still to be tokenized: silent ones, longer ones, and such as were
        transcribed in another window."""
        return [row for row in rows if index not in row.codes]
