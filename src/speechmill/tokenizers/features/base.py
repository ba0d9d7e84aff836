"""The interface of frame features, which units are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Each", "FeatureOptions", "Features", "as_they_are"]

Each = Callable[[NDArray[np.float32]], NDArray[Any]]


def as_they_are(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """The frames, unchanged."""
    return frames


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """The choice of features. A kind refuses options that it has no use for, except defaults.

    ``model`` is a name, a hub id or a folder; "" is the kind's own. ``layer`` counts from 1; 0 is
    the kind's own. ``device`` shapes no values.
    """

    kind: str
    model: str = ""
    layer: int = 0
    compute_type: str = "auto"
    n_mfcc: int = 20
    device: str = "auto"

    def as_json(self) -> dict[str, object]:
        """The options as JSON values, but for the device."""
        return {name: value for name, value in asdict(self).items() if name != "device"}


class Features(Protocol):
    """A converter of waveforms to frames of numbers.

    On a processor a waveform's frames do not depend on the other waveforms of the call, on their
    order, or on threads: to the last bit. ``frames`` may be called from several threads at once.
    """

    @property
    def options(self) -> FeatureOptions:
        """The options with every choice settled: no "", no 0, and no auto except for the device."""

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, that ``frames`` wants."""

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the values, as JSON values: weights' digests, options."""

    def frames(
        self, waveforms: Sequence[NDArray[np.float32]], each: Each = as_they_are
    ) -> list[NDArray[Any]]:
        """The frames of each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns float32 [num_frames, width] a waveform, in order; none is of padding. ``each`` is
        called with stretches of them, from any thread, and what it makes of these is joined: so
        an hour's frames need not be held.

        Raises:
            ModelError: the engine cannot run the model.
        """
