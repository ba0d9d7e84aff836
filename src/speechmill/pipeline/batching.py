"""Batches: the pieces of many rows and recordings that the transcriber is given in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from speechmill.pipeline.intake import ReadyPiece, ReadyRecording, ReadyRow

__all__ = ["Batch", "batched"]

MAX_BATCH_S: Final = 1200.0
"""Audio that the transcriber is given in one call, so that its memory is bounded."""


@dataclass(slots=True)
class Batch:
    """Pieces for one call of the transcriber; the rows that begin and the recordings that end with
    them. ``work`` is their transcription, and the making of their tokens."""

    pieces: list[ReadyPiece] = field(default_factory=list)
    rows: list[ReadyRow] = field(default_factory=list)
    ending: list[ReadyRecording] = field(default_factory=list)
    audio_s: float = 0.0
    work: list[Future[None]] = field(default_factory=list)

    def __len__(self) -> int:
        return max(len(self.pieces), len(self.rows), len(self.ending))


def batched(recordings: Iterable[ReadyRecording], most: Callable[[], int]) -> Iterator[Batch]:
    """Put the pieces of recordings together, in order, up to ``most()`` to a batch."""
    batch = Batch()
    for ready in recordings:
        for row in ready.rows:
            if not ready.is_good:
                break
            for i, piece in enumerate(row.pieces):
                is_long = batch.pieces and batch.audio_s + piece.duration_s > MAX_BATCH_S
                if is_long or len(batch) >= most():
                    yield batch
                    batch = Batch()
                batch.pieces.append(piece)
                batch.audio_s += piece.duration_s
                if i == 0:
                    batch.rows.append(row)
            if not row.pieces:
                batch.rows.append(row)
        batch.ending.append(ready)
        if len(batch) >= most():
            yield batch
            batch = Batch()
    if len(batch):
        yield batch
