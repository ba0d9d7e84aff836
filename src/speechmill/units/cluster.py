"""K-means over frames, and how well its centroids fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.tokenizers.nearest import Nearest

__all__ = ["Quality", "kmeans", "quality_of"]

BATCH_FRAMES: Final = 10_000
"""Frames that move the centroids together: those of HuBERT's units (fairseq, learn_kmeans.py)."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How units fit some frames: the mean squared distance to the nearest centroid, how many of
    the units occur, and the perplexity of their distribution (at most their number)."""

    frames: int
    inertia: float
    used: int
    perplexity: float


def kmeans(frames: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    """Cluster frames, float32 [num_frames, width]. Returns centroids, float32 [clusters, width].

    Mini-batch k-means (Sculley, 2010) of scikit-learn, started from the best of three k-means++
    seedings. The same frames and seed give the same centroids.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    model: Any = MiniBatchKMeans(
        clusters,
        random_state=seed,
        batch_size=min(BATCH_FRAMES, len(frames)),
        init_size=min(len(frames), max(BATCH_FRAMES, 3 * clusters)),
        n_init=3,
        max_no_improvement=20,
    )
    # One thread for sums of floats, so that their order, and the file, is the same again.
    with threadpool_limits(1):
        model.fit(frames)
    return np.asarray(model.cluster_centers_, np.float32)


def quality_of(nearest: Nearest, frames: NDArray[np.float32], clusters: int) -> Quality:
    """How well centroids fit frames, float32 [num_frames, width], at least one."""
    units = nearest(frames)
    counts = np.bincount(units, minlength=clusters)
    shares = counts[counts > 0] / len(frames)
    return Quality(
        frames=len(frames),
        inertia=float(nearest.distances(frames, units).mean()),
        used=int((counts > 0).sum()),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
    )
