"""Drawing some of a corpus, so that the same seed draws the same again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Recording

__all__ = ["Draw", "Reservoir", "share_s"]


class Draw:
    """Draws by hashes of a seed and of names: what else there is, and its order, do not matter."""

    def __init__(self, seed: int) -> None:
        self._salt = seed.to_bytes(8, "big")

    def luck(self, name: str) -> bytes:
        """What to sort by, for an order by lot."""
        return hashlib.blake2b(name.encode(), digest_size=16, salt=self._salt).digest()

    def number(self, name: str) -> int:
        """0 … 2⁶⁴ − 1, all as likely."""
        return int.from_bytes(self.luck(name)[8:], "big")

    def spread(self, by_folder: Mapping[str, Sequence[Recording]]) -> list[Recording]:
        """One recording of each folder, then another one of each, and so on."""
        columns = [
            sorted(recordings, key=lambda r: self.luck(r.file_name))
            for _, recordings in sorted(by_folder.items(), key=lambda item: self.luck(item[0]))
        ]
        return [r for row in zip_longest(*columns) for r in row if r is not None]


class Reservoir:
    """Frames of which each that was added has the same chance to be kept, at most ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._share = 1.0
        self._frames: NDArray[np.float32] | None = None
        self._luck = np.empty(capacity)
        self._count = 0

    def add(self, frames: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Add [num_frames, width]; whether each is kept is up to ``rng``, and to those to come."""
        if self._frames is None:
            self._frames = np.empty((self._capacity, frames.shape[1]), np.float32)
        luck = rng.random(len(frames))
        while True:
            chosen = luck < self._share
            added = int(chosen.sum())
            if self._count + added <= self._capacity:
                break
            self._share /= 2
            kept = self._luck[: self._count] < self._share
            count = int(kept.sum())
            self._frames[:count] = self._frames[: self._count][kept]
            self._luck[:count] = self._luck[: self._count][kept]
            self._count = count
        end = self._count + added
        self._frames[self._count : end] = frames[chosen]
        self._luck[self._count : end] = luck[chosen]
        self._count = end

    @property
    def frames(self) -> NDArray[np.float32]:
        """[num_frames, width], not a copy."""
        return np.empty((0, 1), np.float32) if self._frames is None else self._frames[: self._count]


def share_s(durations: Sequence[float], target_s: float) -> float:
    """How much is to be taken of each at most, so that together they give ``target_s``."""
    left_s = target_s
    for i, duration_s in enumerate(sorted(durations)):
        share_s = left_s / (len(durations) - i)
        if duration_s >= share_s:
            return share_s
        left_s -= duration_s
    return target_s
