"""Units of rows out of what transcription has heard of them, instead of hearing them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from speechmill.pipeline.intake import ReadyPiece, ReadyRow
from speechmill.records import Speech
from speechmill.tokenizers.base import Tokenizer
from speechmill.tokenizers.units import EncoderUnits
from speechmill.transcribers.base import Transcriber

__all__ = ["SharedEncoder"]


class SharedEncoder:
    """The tokenizers of a job that can take what its transcriber's encoder gives.

    ``__contains__`` takes a tokenizer's number in the job: its rows are to be tokenized after they
    are transcribed, and only those that ``left`` names.
    """

    def __init__(self, transcriber: Transcriber, tokenizers: Sequence[Tokenizer]) -> None:
        self._sample_rate = transcriber.sample_rate
        self._units: dict[int, EncoderUnits] = {
            i: t
            for i, t in enumerate(tokenizers)
            if isinstance(t, EncoderUnits) and t.shares(transcriber)
        }

    def __contains__(self, index: int) -> bool:
        return index in self._units

    def __bool__(self) -> bool:
        return bool(self._units)

    def listener(
        self, pieces: Sequence[ReadyPiece], speech: Sequence[Speech]
    ) -> Callable[[int, NDArray[Any]], None]:
        """What ``WhisperTranscriber.transcribe(speech, on_encoded=…)`` is to be given."""

        def on_encoded(number: int, encoded: NDArray[Any]) -> None:
            piece, given = pieces[number], speech[number]
            if not self._is_all_of_its_row(piece, given):
                return
            started = time.perf_counter()
            for index, units in self._units.items():
                piece.row.codes[index] = units.from_encoded(encoded, len(given.samples))
            with piece.row.lock:
                piece.row.tokenize_s += time.perf_counter() - started

        return on_encoded

    def left(self, index: int, rows: Sequence[ReadyRow]) -> list[ReadyRow]:
        """The rows whose units have to be computed: silent ones, longer ones, and such as were
        transcribed in another window."""
        return [row for row in rows if index not in row.codes]

    def _is_all_of_its_row(self, piece: ReadyPiece, given: Speech) -> bool:
        """Whether the transcriber is given the very samples that a tokenizer is given."""
        row = piece.row
        return (
            len(row.pieces) == 1
            and piece.piece.start_s == row.row.start_s
            and len(given.samples) == len(row.samples(self._sample_rate))
        )
