"""Whisper's encoder on windows of speech, and the detection of languages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.records import Speech
from speechmill.transcribers import ctranslate
from speechmill.transcribers.languages import SpokenLanguage, among, best
from speechmill.transcribers.windows import FULL_WINDOW_S, WindowOptions

__all__ = ["FRAME_RATE", "SAMPLE_RATE", "MelFilters", "SpeechEncoder"]

SAMPLE_RATE: Final = 16_000
FRAME_RATE: Final = 100
"""Log mel frames per second; the encoder gives one for two."""


class MelFilters:
    """Whisper's mel filters, [num_mels, num_bins], which multiply a spectrogram without BLAS: its
    sums come out differently in the last bit on one thread and on two, on some processors.

    Each filter weighs a few neighbouring bins, so this takes no longer.
    """

    def __init__(self, filters: NDArray[np.float32] | MelFilters) -> None:
        self._filters: NDArray[np.float32] = np.asarray(filters, np.float32)
        self.shape = self._filters.shape
        self._bands = []
        for weights in self._filters:
            bins = np.flatnonzero(weights)
            first, last = (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 1)
            self._bands.append((slice(first, last), weights[first:last].copy()))

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> NDArray[np.float32]:
        """As an array."""
        return np.array(self._filters, dtype=dtype, copy=copy)

    def __matmul__(self, spectrogram: NDArray[np.float32]) -> NDArray[np.float32]:
        """[num_bins, num_frames] → [num_mels, num_frames]."""
        mel = np.empty((len(self._bands), spectrogram.shape[1]), np.float32)
        for row, (bins, weights) in zip(mel, self._bands, strict=True):
            np.einsum("b,bt->t", weights, spectrogram[bins], out=row, optimize=False)
        return mel


class SpeechEncoder:
    """Encodes speech, and tells its language.

    Args:
        whisper: faster-whisper's model.
        placement: where it runs.
        windows: the options of windows.
        language: the code of the language, if it is given.
        allowed: the codes of languages that may be detected; empty for all.
    """

    def __init__(
        self,
        whisper: Any,
        placement: ctranslate.Placement,
        windows: WindowOptions,
        language: str | None,
        allowed: Sequence[str],
    ) -> None:
        whisper.feature_extractor.mel_filters = MelFilters(whisper.feature_extractor.mel_filters)
        self._whisper = whisper
        self.placement = placement
        self.windows = windows
        self.language = language
        self._allowed = allowed

    @property
    def is_multilingual(self) -> bool:
        """Whether the model tells languages apart."""
        return bool(self._whisper.model.is_multilingual)

    @property
    def detects(self) -> bool:
        """Whether there is a language to detect."""
        return self.language is None and self.is_multilingual

    def encode_with_silence(
        self, batch: Sequence[Speech], windows_s: Sequence[float]
    ) -> NDArray[Any]:
        """Encode stretches whose windows give the decoder inputs of one length: the encoder's
        output and silence behind it, [batch, frames, width]."""
        return self.with_silence(self.encode_windows(batch, windows_s), windows_s)

    def encode_windows(
        self, batch: Sequence[Speech], windows_s: Sequence[float]
    ) -> list[NDArray[Any]]:
        """Encode each stretch in its window: [50 · window_s, width] each. Windows of one length are
        one batch."""
        groups: defaultdict[float, list[int]] = defaultdict(list)
        for i, window_s in enumerate(windows_s):
            groups[window_s].append(i)
        heard: dict[int, NDArray[Any]] = {}
        for window_s, indices in groups.items():
            features = np.stack([self.features(batch[i], window_s) for i in indices])
            heard |= zip(indices, ctranslate.encode(self._whisper.model, features), strict=True)
        return [heard[i] for i in range(len(batch))]

    def with_silence(
        self, heard: Sequence[NDArray[Any]], windows_s: Sequence[float]
    ) -> NDArray[Any]:
        """Put encoded silence behind encoded windows: [batch, frames, width]."""
        frames_a_s = FRAME_RATE // 2
        last = int(self.windows.decoder_s(windows_s[0]) * frames_a_s)
        encoded = np.empty((len(heard), last, heard[0].shape[1]), heard[0].dtype)
        for one, frames in zip(encoded, heard, strict=True):
            one[: len(frames)] = frames
            one[len(frames) :] = self.silence[len(frames) : last]
        return encoded

    def features(self, speech: Speech, window_s: float) -> NDArray[np.float32]:
        """Compute a window's log mel energies, float32 [mels, 100 · window_s], as Whisper scales
        them."""
        samples = np.zeros(int(window_s * SAMPLE_RATE), np.float32)
        samples[: len(speech.samples)] = speech.samples
        features = self._whisper.feature_extractor(samples)
        return np.asarray(features[:, : int(window_s * FRAME_RATE)], np.float32)

    @cached_property
    def silence(self) -> NDArray[Any]:
        """The encoder's output for 30 s of silence, [1500, width]."""
        shape = (1, self._whisper.model.n_mels, int(FULL_WINDOW_S * FRAME_RATE))
        level = np.full(shape, self.windows.silence_level, np.float32)
        encoded: NDArray[Any] = ctranslate.encode(self._whisper.model, level)[0]
        return encoded

    def languages_of(
        self, batch: Sequence[Speech], windows_s: Sequence[float], output: Any
    ) -> list[SpokenLanguage]:
        """Determine each stretch's language: the given one, its recording's, or the detected one.

        ``output`` is the encoder's for these windows; None if it has not been computed.
        """
        if self.language or not self.is_multilingual:
            return [SpokenLanguage(self.language or "en", None)] * len(batch)
        spoken = [SpokenLanguage(one.language or "", one.language_probability) for one in batch]
        unknown = [i for i, one in enumerate(batch) if not one.language]
        if unknown and output is None:
            output = ctranslate.to_storage(
                self.encode_with_silence(batch, windows_s), self.placement
            )
        found = self._whisper.model.detect_language(output) if unknown else []
        for i in unknown:
            probabilities = self._among_allowed(found[i])
            code, probability = best(probabilities)
            if probability < self.windows.sure_language and windows_s[i] < FULL_WINDOW_S:
                code, probability = best(self.probabilities(batch[i], FULL_WINDOW_S))
            spoken[i] = SpokenLanguage(code, probability)
        return spoken

    def probabilities(self, speech: Speech, window_s: float) -> dict[str, float]:
        """Compute each language's probability in one stretch, by code."""
        return self.shares(self.encode_with_silence([speech], [window_s]))[0]

    def shares(self, encoded: Sequence[NDArray[Any]] | NDArray[Any]) -> list[dict[str, float]]:
        """Compute each language's probability in what the encoder made of stretches of speech,
        [num_frames, width] each, all of one length."""
        output = ctranslate.to_storage(np.asarray(encoded), self.placement)
        return [self._among_allowed(found) for found in self._whisper.model.detect_language(output)]

    def _among_allowed(self, found: Sequence[tuple[str, float]]) -> dict[str, float]:
        """Key probabilities by code; if only some languages are allowed, normalise over these."""
        return among(self._allowed, {token[2:-2]: probability for token, probability in found})
