"""Temporary files for long waveforms, so that memory does not hold them."""

from __future__ import annotations

import io
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import NoRoomError, StorageError
from speechmill.machine import Claim, FileMap, is_no_room

__all__ = ["PIECE_SAMPLES", "SPILL_SAMPLES", "Spool", "pieces"]

SPILL_SAMPLES = 5 * 60 * 48_000
"""A longer waveform (58 MB, 5 minutes at 48 kHz) goes to a file; shorter ones are most, and faster
in memory."""

PIECE_SAMPLES = 1 << 20
"""Samples processed at a time (4 MB): enough that numpy's calls pay, and little memory."""


def pieces(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield a waveform, float32 [num_samples], in views of up to ``PIECE_SAMPLES``."""
    for at in range(0, len(samples), PIECE_SAMPLES):
        yield samples[at : at + PIECE_SAMPLES]


class Spool:
    """Collects a waveform block by block; a long one goes to a file in the temporary folder.

    The file has no name (TMPDIR says in which folder): it is gone when the spool and the joined
    array are, however the process ends. Its room is claimed before it is used, so that a recording
    that does not fit takes none from others: that of ``expected_samples``, where they are known.
    """

    def __init__(self, expected_samples: int = 0) -> None:
        self.expected_samples = expected_samples
        self._claim: Claim | None = None  # with the file
        self._num_samples = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._file: io.FileIO | None = None

    def add(self, block: NDArray[np.float32]) -> None:
        """Add a block, float32 [num_samples].

        Raises NoRoomError where the temporary folder has no room, StorageError where it cannot be
        written to.
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
        """Return all samples, float32 [num_samples], and leave the spool empty.

        Those of a long waveform are a read-only map of the file.

        Raises StorageError where the file cannot be mapped.
        """
        if self._file is not None and self._claim is not None:
            try:
                mapped = FileMap(self._file.fileno())
            except OSError as error:
                raise _no_room(error) from None
            self._claim.keep_for(mapped)
            self._claim = None
            self.clear()
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
        """Discard all samples."""
        if self._file is not None:
            self._file.close()
        if self._claim is not None:
            self._claim.release()
        self._num_samples, self._blocks, self._file, self._claim = 0, [], None, None

    def _spill(self) -> None:
        if self._file is None or self._claim is None:
            file = tempfile.TemporaryFile(prefix="speechmill-", buffering=0)  # noqa: SIM115 join or clear closes it
            weakref.finalize(self, file.close)  # … or whoever drops the spool
            self._file, self._claim = file, Claim()
        for block in self._blocks:
            octets = np.ascontiguousarray(block).view(np.uint8).data
            self._claim.write(self._file, octets, 4 * self.expected_samples)
        self._blocks = []


def _no_room(error: OSError) -> StorageError:
    where = tempfile.tempdir or "the temporary folder"
    kind = NoRoomError if is_no_room(error) else StorageError
    return kind(
        f"a long recording is held in a temporary file in {where}, and that failed: "
        f"{error.strerror}; make room there, or let TMPDIR name another folder"
    )
