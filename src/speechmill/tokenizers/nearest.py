"""Exact search for the nearest of many points: its result depends on frame and points alone.

A matrix product of floats is rounded, in an order that depends on the library, its threads and the
shapes; where two points are about equally near, the last bit decides. So frames and points are
taken as whole numbers (about 18 bits for the largest value of a point), with so few bits that no
sum of products reaches 2⁵³: float64 holds all of them exactly, in any order, on any machine, and
BLAS is as fast as on other floats. It runs on one thread, because there are many callers: more
threads would wait for each other, at the cost of the transcription beside them.
"""

from __future__ import annotations

import math
import threading
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import ModelError

__all__ = ["Nearest"]

FLOAT64_BITS: Final = 53
ROOM_BITS: Final = 3
"""A frame's values may be 2³ times as large as the largest of a point; larger ones are cut off."""

BLOCK_FRAMES: Final = 1024
"""Frames compared at once: it bounds the memory."""


class _OneThread:
    """A context in which BLAS runs on one thread, in all of the process, until all have left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    @cached_property
    def _controller(self) -> Any:
        try:
            from threadpoolctl import ThreadpoolController
        except ImportError:  # BLAS keeps its threads: slower, with the same result
            return None
        return ThreadpoolController()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside and self._controller is not None:
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._limit is not None:
                self._limit.restore_original_limits()
                self._limit = None


_one_thread = _OneThread()


class Nearest:
    """Search for the point with the least Euclidean distance; of equally near ones, the first.

    Args:
        points: float32 [num_points, width], finite.
        weights: float32 [width], above 0; both points and frames are multiplied by them first.
    """

    def __init__(self, points: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        width = points.shape[1]
        weighted = points * weights.astype(np.float64)
        # |2·x·p| + |p|² is at most 3·width·limit².
        bits = (FLOAT64_BITS - math.ceil(math.log2(3 * width))) // 2
        self._limit = float(2**bits)
        largest = float(np.abs(weighted).max(initial=0.0)) or 1.0
        # A power of two: multiplying by it is exact.
        self._scale = 2.0 ** (bits - ROOM_BITS - math.ceil(math.log2(largest)))
        self._factors = weights.astype(np.float64) * self._scale
        self._points = self._whole(points)
        self._doubled = np.ascontiguousarray(2 * self._points.T)
        self._squares = np.square(self._points).sum(axis=1)

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.int64]:
        """[num_frames, width] → the number of the nearest point of each, [num_frames].

        Raises:
            ModelError: the frames have another width, or are not finite.
        """
        if frames.ndim != 2 or frames.shape[1] != len(self._factors):
            raise ModelError(
                f"the features are {list(frames.shape)}, where the units were fitted on "
                f"[num_frames, {len(self._factors)}]: the model is not the one of the fit"
            )
        if not np.isfinite(frames).all():
            raise ModelError("the features are not finite: the model's weights are damaged")
        nearest = np.empty(len(frames), np.int64)
        for first in range(0, len(frames), BLOCK_FRAMES):
            block = self._whole(frames[first : first + BLOCK_FRAMES])
            with _one_thread:
                closeness = block @ self._doubled
            closeness -= self._squares
            nearest[first : first + len(block)] = closeness.argmax(axis=1)
        return nearest

    def distances(
        self, frames: NDArray[np.float32], nearest: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The squared distance of each frame to its point in ``nearest``, [num_frames]."""
        parts = [
            np.square(
                self._whole(frames[first : first + BLOCK_FRAMES])
                - self._points[nearest[first : first + BLOCK_FRAMES]]
            ).sum(axis=1)
            for first in range(0, len(frames), BLOCK_FRAMES)
        ]
        return np.concatenate([*parts, np.empty(0)]) / self._scale**2

    def _whole(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        whole = values * self._factors
        np.rint(whole, out=whole)
        return np.clip(whole, -self._limit, self._limit, out=whole)
