"""Long waveforms, held in a temporary file instead of in memory."""

from __future__ import annotations

import io
import mmap
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import StorageError

__all__ = ["PIECE_SAMPLES", "SPILL_SAMPLES", "Spool", "pieces"]

SPILL_SAMPLES = 5 * 60 * 48_000
"""A waveform of more samples than these (58 MB, 5 minutes at 48 kHz) goes to a file."""

PIECE_SAMPLES = 1 << 20
"""So much of a waveform is worked on at a time."""


def pieces(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """A waveform, float32 [num_samples], in views of up to ``PIECE_SAMPLES``."""
    for at in range(0, len(samples), PIECE_SAMPLES):
        yield samples[at : at + PIECE_SAMPLES]


class Spool:
    """Takes in a waveform block by block; a long one goes to a file in the temporary folder.

    The file has no name (TMPDIR says in which folder): it is gone when the spool and the joined
    array are, however the process ends.
    """

    def __init__(self) -> None:
        self._num_samples = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._file: io.FileIO | None = None

    def add(self, block: NDArray[np.float32]) -> None:
        """Take in a block, float32 [num_samples].

        Raises StorageError where the temporary folder has no room.
        """
        self._num_samples += len(block)
        self._blocks.append(block)
        if self._num_samples > SPILL_SAMPLES:
            try:
                self._spill()
            except OSError as error:
                self.clear()
                raise _no_room(error) from None

    def join(self) -> NDArray[np.float32]:
        """All samples, float32 [num_samples]; then the spool is empty.

        Of a long waveform they are mapped from the file, and cannot be written to.

        Raises StorageError where the file cannot be mapped.
        """
        if self._file is not None:
            try:
                mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
                self.clear()
            except OSError as error:
                raise _no_room(error) from None
            return np.frombuffer(mapped, np.float32)
        blocks, count = self._blocks, self._num_samples
        self.clear()
        if len(blocks) == 1:
            return np.ascontiguousarray(blocks[0])
        samples = np.empty(count, np.float32)
        blocks.reverse()
        at = 0
        while blocks:  # each block is freed once it is copied
            block = blocks.pop()
            samples[at : at + len(block)] = block
            at += len(block)
        return samples

    def clear(self) -> None:
        """Forget all samples."""
        if self._file is not None:
            self._file.close()
        self._num_samples, self._blocks, self._file = 0, [], None

    def _spill(self) -> None:
        if self._file is None:
            file = tempfile.TemporaryFile(prefix="speechmill-", buffering=0)  # noqa: SIM115 join or clear closes it
            weakref.finalize(self, file.close)  # … or whoever drops the spool
            self._file = file
        for block in self._blocks:
            octets = np.ascontiguousarray(block).view(np.uint8).data
            while octets:
                octets = octets[self._file.write(octets) :]
        self._blocks = []


def _no_room(error: OSError) -> StorageError:
    where = tempfile.tempdir or "the temporary folder"
    return StorageError(
        f"a long recording is held in a temporary file in {where}, and that failed: "
        f"{error.strerror}; make room there, or let TMPDIR name another folder"
    )
