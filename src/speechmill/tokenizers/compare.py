"""Comparison of codes, codebook by codebook."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mismatch"]


def mismatch(codes: NDArray[Any], others: NDArray[Any]) -> tuple[float, ...]:
    """The share of frames, 0 to 1, whose code differs, one for each codebook.

    Both are [num_codebooks, num_frames]; a frame or a codebook that only one of them has differs.
    """
    num_codebooks = max(len(codes), len(others))
    num_frames = max(codes.shape[1], others.shape[1])
    if not num_frames:
        return (0.0,) * num_codebooks
    both = min(len(codes), len(others)), min(codes.shape[1], others.shape[1])
    same = np.zeros(num_codebooks, np.int64)
    same[: both[0]] = (codes[: both[0], : both[1]] == others[: both[0], : both[1]]).sum(axis=1)
    return tuple((1 - same / num_frames).tolist())
