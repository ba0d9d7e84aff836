"""Tokens of rows, and checks of how good they are."""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill import audio
from speechmill.errors import JobError, MissingExtraError
from speechmill.pipeline.intake import ReadyPiece, ReadyRow, recorded
from speechmill.pipeline.isolate import all_or_each
from speechmill.pipeline.resources import Resources
from speechmill.records import Codes, Speech, Waveform
from speechmill.text.transcripts import join_texts
from speechmill.tokenizers.base import Codec, Tokenizer
from speechmill.tokenizers.compare import mismatch

__all__ = ["RoundTrip", "SampleCheck", "tokenize"]


def tokenize(tokenizer: Tokenizer, index: int, rows: Sequence[ReadyRow]) -> None:
    """Give each row the codes of the job's tokenizer, its number ``index``, all in one call.

    If that fails, row by row, to find whose fault it was.
    """

    def encode(some: Sequence[ReadyRow]) -> None:
        good = [row for row in some if row.owner.is_good]
        if not good:
            return
        started = time.perf_counter()
        encoded = tokenizer.encode([row.samples(tokenizer.sample_rate) for row in good])
        seconds = time.perf_counter() - started
        total_s = sum(row.duration_s for row in good)
        for row, codes in zip(good, encoded, strict=True):
            row.codes[index] = codes
            with row.lock:
                row.tokenize_s += seconds * row.duration_s / total_s

    def failed(row: ReadyRow, error: Exception) -> None:
        with recorded(row.owner, "tokenize"):
            raise error

    all_or_each(rows, encode, failed)


class SampleCheck:
    """Encodes the first row of a shard anew, alone, by each tokenizer that gives codes.

    On a GPU rounding may differ with the batch. ``rates`` are the shares of codes that differ, by
    tokenizer name, one a codebook.
    """

    def __init__(self, tokenizers: Sequence[Tokenizer]) -> None:
        self._tokenizers = tokenizers
        self._lock = threading.Lock()
        self._begun = False
        self.rates: dict[str, tuple[float, ...]] = {}

    def check(self, rows: Sequence[ReadyRow]) -> None:
        """Check the first good row of these, unless one has been checked before."""
        with self._lock:
            row = next((r for r in rows if r.owner.is_good and r.codes), None)
            if self._begun or row is None:
                return
            self._begun = True
        for i, tokenizer in enumerate(self._tokenizers):
            if tokenizer.codebook_size is not None and i in row.codes:
                with recorded(row.owner, "tokenize"):
                    (alone,) = tokenizer.encode([row.samples(tokenizer.sample_rate)])
                    self.rates[tokenizer.name] = mismatch(row.codes[i].values, alone.values)


class RoundTrip:
    """Turns codes back into sound, transcribes that, and compares the texts.

    Codes that have lost what was said give another text. The character error rate is against the
    row's transcription, with case and punctuation left out.

    Raises:
        JobError: no tokenizer of the job can decode.
        MissingExtraError: RapidFuzz is not installed.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._codecs = {i: t for i, t in enumerate(resources.tokenizers) if isinstance(t, Codec)}
        if not self._codecs:
            names = ", ".join(t.name for t in resources.tokenizers) or "none"
            raise JobError(
                f"round_trip needs a tokenizer that decodes, such as encodec; there are: {names}"
            )
        try:
            from rapidfuzz.distance import Levenshtein
        except ImportError:
            raise MissingExtraError("round_trip", "codecs") from None
        self._distance = Levenshtein.distance

    def judge(self, rows: Sequence[ReadyRow]) -> None:
        """Give each row whose pieces are transcribed its CER by tokenizer, where it has text."""
        rows = [r for r in rows if r.owner.is_good and _text(r.pieces)]
        for index, codec in self._codecs.items():
            for row in rows:
                with recorded(row.owner, "tokenize"):
                    row.round_trip_cer[index] = self._cer(row, codec, row.codes[index])

    def _cer(self, row: ReadyRow, codec: Codec, codes: Codes) -> float:
        (decoded,) = codec.decode([codes])
        transcriber = self._resources.transcriber
        samples = audio.resample(
            Waveform(decoded, codec.sample_rate), transcriber.sample_rate
        ).samples
        speech = [_same_stretch(p, samples, transcriber.sample_rate) for p in row.pieces]
        decoded_text = join_texts([t.text for t in transcriber.transcribe(speech)])
        wanted = _letters_of(_text(row.pieces))
        return float(self._distance(wanted, _letters_of(decoded_text)) / max(1, len(wanted)))


def _same_stretch(piece: ReadyPiece, samples: NDArray[np.float32], sample_rate: int) -> Speech:
    """The stretch of the decoded row that the piece is of the recording."""
    first_s, last_s = piece.piece.start_s, piece.piece.end_s
    start = round((first_s - piece.row.row.start_s) * sample_rate)
    length = max(1, round((last_s - first_s) * sample_rate))
    there = samples[start : start + length]
    stretch = np.pad(there, (0, length - len(there)))
    voiced = piece.piece.voiced and tuple((a - first_s, b - first_s) for a, b in piece.piece.voiced)
    language = piece.transcript.language if piece.transcript else None
    return Speech(stretch, voiced, language)


def _text(pieces: Sequence[ReadyPiece]) -> str:
    return join_texts([p.transcript.text for p in pieces if p.transcript is not None])


def _letters_of(text: str) -> str:
    """Letters and digits, and single spaces between words."""
    folded: Any = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())
