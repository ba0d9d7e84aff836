"""Units: each frame's nearest centroid of k-means over frame features (Hsu et al., 2021; Lakhotia
et al., 2021), in the order of the frames, or with equal neighbours merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, MissingExtraError, ModelError
from speechmill.records import Codes
from speechmill.tokenizers.base import stored
from speechmill.tokenizers.features import FeatureOptions, Features, open_features
from speechmill.tokenizers.nearest import Nearest
from speechmill.tokenizers.units_file import UnitsFile, read_units
from speechmill.transcribers.base import SharesEncoder, Transcriber

__all__ = ["MAX_RUN", "UnitsTokenizer", "expand_runs", "merge_runs"]

VERSION: Final = 1
"""Raised by hand whenever codes of the same file change: it is part of the recipe."""

MAX_RUN: Final = 255
"""Frames of a run, at most: a longer one is stored as several."""


class UnitsTokenizer:
    """The units of a file that ``speechmill units fit`` has written.

    Args:
        model: the file.
        merge: store runs of equal units once, with how many frames each takes (``merge_runs``).
        weights: the model of the features, by name, hub id or folder, where it is not found as at
            the fit. It has to be the same one.
        device: where the features are computed: auto, cpu, cuda or cuda:1.

    Raises:
        JobError: no file is given, or the device is not here.
        MissingExtraError: the features need an extra that is not installed.
        ModelError: the file is broken; the features' model is not to be found, or not the same.
    """

    name = "units"

    def __init__(
        self, *, model: str = "", merge: bool = False, weights: str = "", device: str = "auto"
    ) -> None:
        if not model:
            raise JobError(
                "units needs a file: --tokenizer units:units.safetensors; speechmill units fit "
                "makes one"
            )
        self._units = units = read_units(model)
        self._merge = merge
        self._features = _open_features(model, units, weights, device)
        found, wanted = dict(self._features.recipe), dict(units.recipe)
        if found != wanted:
            names = [n for n in {**wanted, **found} if found.get(n) != wanted.get(n)]
            raise ModelError(
                f"{model!r} was fitted on other features than there are here: {', '.join(names)} "
                f"differ (the fit had {_shown(wanted, names)}, here is {_shown(found, names)}); "
                "name the right model with --tokenizer-option units.weights=…, or fit anew"
            )
        rates = (self._features.sample_rate, self._features.hop_length)
        if rates != (units.sample_rate, units.hop_length):
            raise ModelError(f"{model!r} is damaged: its rates are not those of its features")
        self._nearest = Nearest(units.centroids, units.weights)
        self.sample_rate, self.hop_length = rates
        self.num_codebooks = 2 if merge else 1
        self.codebook_size = max(units.num_clusters, MAX_RUN + 1 if merge else 0)

    @property
    def frame_rate(self) -> float:
        """Frames a second, in Hz; where runs are merged, of the frames that they stand for."""
        return self.sample_rate / self.hop_length

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the codes: the file's SHA-256, and all of the features."""
        return {
            "tokenizer": self.name,
            "version": VERSION,
            "units": self._units.sha256,
            "clusters": self._units.num_clusters,
            "merge": self._merge,
            "features": dict(self._features.recipe),
        }

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        """Encode each waveform (float32 [num_samples], mono, −1..1, at ``sample_rate``).

        Returns int16 (int32 above 32,768 clusters) [1, num_frames] a waveform, in order; with
        ``merge`` [2, num_runs], as ``merge_runs`` says.

        Raises:
            ModelError: the features cannot be computed, as for want of memory.
        """
        return [self._codes(units) for units in self._features.frames(waveforms, self._nearest)]

    def attach(self, transcriber: Transcriber) -> None:
        """See ``TakesEncoded``."""
        if isinstance(self._features, _FromEncoder):
            self._features.attach(transcriber)

    def shares(self, transcriber: Transcriber) -> TypeGuard[SharesEncoder]:
        """See ``TakesEncoded``."""
        return isinstance(self._features, _FromEncoder) and self._features.shares(transcriber)

    def from_encoded(self, encoded: NDArray[Any], num_samples: int) -> Codes:
        """See ``TakesEncoded``.

        Raises:
            JobError: these units are not of an encoder that transcription computes.
            ModelError: the width is another than that of the fit.
        """
        if not isinstance(self._features, _FromEncoder):
            raise JobError(f"these units are of {self._units.options['kind']}, not of an encoder")
        return self._codes(self._nearest(self._features.from_encoded(encoded, num_samples)))

    def _codes(self, units: NDArray[np.int64]) -> Codes:
        """[num_frames] → what is stored of them."""
        values = merge_runs(units[None]) if self._merge else units[None]
        return stored(values, self.codebook_size)


@runtime_checkable
class _FromEncoder(Protocol):
    """Features that a transcriber may have computed."""

    def attach(self, transcriber: Transcriber) -> None: ...

    def shares(self, transcriber: Transcriber) -> TypeGuard[SharesEncoder]: ...

    def from_encoded(self, encoded: NDArray[Any], num_samples: int) -> NDArray[np.float32]: ...


def merge_runs(units: NDArray[Any]) -> NDArray[Any]:
    """Units a frame, int [1, num_frames] → runs, int [2, num_runs]: their units, and how many
    frames each takes, 1 to 255. A longer run becomes several. ``expand_runs`` is the inverse."""
    (codes,) = units
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else codes[:0]
    lengths = np.diff(np.r_[starts, len(codes)])
    pieces = -(-lengths // MAX_RUN)
    durations = np.full(int(pieces.sum()), MAX_RUN)
    if len(durations):
        durations[np.cumsum(pieces) - 1] = lengths - MAX_RUN * (pieces - 1)
    return np.stack([np.repeat(codes[starts], pieces), durations.astype(units.dtype)])


def expand_runs(runs: NDArray[Any]) -> NDArray[Any]:
    """Runs, int [2, num_runs] → units a frame, int [1, num_frames]: what ``merge_runs`` merged.

    Raises:
        JobError: they are no runs: another shape, or a duration below 1.
    """
    if runs.ndim != 2 or len(runs) != 2 or (runs.size and runs[1].min() < 1):
        raise JobError(
            f"runs are [2, num_runs]: units, and durations of at least one frame; not "
            f"{runs.dtype} {list(runs.shape)}: were these units stored with merge?"
        )
    return np.repeat(runs[0], runs[1])[None]


def _open_features(path: str, units: UnitsFile, weights: str, device: str) -> Features:
    """The features that the units are of; errors tell where they are asked for."""
    try:
        options = FeatureOptions(**units.options, device=device)
    except TypeError as error:
        raise ModelError(f"{path!r} is damaged, or of a newer Speechmill: {error}") from error
    if weights and not options.model:
        raise JobError(f"{options.kind} has no weights to choose: leave out units.weights")
    try:
        return open_features(replace(options, model=weights) if weights else options)
    except MissingExtraError:
        raise
    except JobError as error:
        raise JobError(f"the features of the units in {path!r}: {error}") from error
    except ModelError as error:
        raise ModelError(
            f"the features of the units in {path!r}: {error} If the model lies elsewhere here, "
            "name it with --tokenizer-option units.weights=…"
        ) from error


def _shown(recipe: Mapping[str, object], names: Sequence[str]) -> str:
    shown = "; ".join(f"{name} {recipe.get(name)}" for name in names)
    return shown if len(shown) < 200 else f"{shown[:200]}…"
