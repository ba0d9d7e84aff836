"""What every transcriber does, whichever model and engine is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Transcript

__all__ = ["Transcriber"]


class Transcriber(Protocol):
    """Turns waveforms into transcripts.

    An instance is used from one thread at a time. What it returns for a waveform does not depend
    on the other waveforms of the call.
    """

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, that ``transcribe`` wants."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values: weights' digests, options."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it: engine, device, library versions."""

    def transcribe(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        """Transcribe each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns one transcript a waveform, in order.

        Raises:
            ModelError: the engine cannot run the model.
        """
