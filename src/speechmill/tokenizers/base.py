"""The interface of tokenizers: spectral features, units and neural codecs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Codes
from speechmill.transcribers.base import SharesEncoder, Transcriber

__all__ = ["Codec", "TakesEncoded", "Tokenizer", "stored"]

WIDE: Final = 32_768
"""Codebooks with more entries than this need int32."""


def stored(values: NDArray[Any], codebook_size: int) -> Codes:
    """Make codes in the smallest type that holds all of the codebook's."""
    wide = codebook_size > WIDE
    return Codes(values.astype(np.int32) if wide else values.astype(np.int16))


class Tokenizer(Protocol):
    """Turns waveforms into audio tokens: features or discrete codes.

    What it returns for a waveform does not depend on the other waveforms of the call.
    ``encode`` may be called from several threads at once.
    """

    @property
    def name(self) -> str:
        """The name users give it, such as ``mfcc``."""

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, that ``encode`` wants."""

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""

    @property
    def frame_rate(self) -> float:
        """Frames a second, in Hz: ``sample_rate / hop_length``."""

    @property
    def num_codebooks(self) -> int:
        """Rows of the output: codebooks, or features a frame."""

    @property
    def codebook_size(self) -> int | None:
        """Number of different codes; None for continuous features (float32)."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the tokens, as JSON values: weights' digests, options."""

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns one ``Codes`` a waveform, in order: [num_codebooks, num_frames].
        """


@runtime_checkable
class Codec(Tokenizer, Protocol):
    """A tokenizer whose codes can be turned back into sound."""

    def decode(self, codes: Sequence[Codes]) -> list[NDArray[np.float32]]:
        """Decode what ``encode`` gave: [num_codebooks, num_frames] each.

        Returns one waveform for each, in order: float32 [decoded_length(num_frames)], at
        ``sample_rate``. It does not depend on the other codes of the call.

        Raises:
            JobError: they are not this codec's codes.
        """

    def decoded_length(self, num_frames: int) -> int:
        """Number of samples that ``decode`` gives for ``num_frames``."""


@runtime_checkable
class TakesEncoded(Tokenizer, Protocol):
    """A tokenizer that can take what a transcriber's encoder has computed anyway."""

    def attach(self, transcriber: Transcriber) -> None:
        """Use the transcriber's model instead of loading the same weights again, if they are."""

    def shares(self, transcriber: Transcriber) -> TypeGuard[SharesEncoder]:
        """Whether the transcriber hands on what its encoder computes, and that will do."""

    def from_encoded(self, encoded: NDArray[Any], num_samples: int) -> Codes:
        """The codes of a waveform of ``num_samples``, at most 30 s, out of what the encoder made
        of it: float [at least ceil(num_samples / hop_length), width]. Thread-safe."""
