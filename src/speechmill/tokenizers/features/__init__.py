"""Features by name. Adding a kind is one file and one line in ``FEATURES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError, did_you_mean
from speechmill.tokenizers.features.base import Each, FeatureOptions, Features, as_they_are

__all__ = ["FEATURES", "Each", "FeatureOptions", "Features", "as_they_are", "open_features"]


def _spectral(options: FeatureOptions) -> Features:
    from speechmill.tokenizers.features.spectral import SpectralFeatures

    return SpectralFeatures(options)


def _whisper(options: FeatureOptions) -> Features:
    from speechmill.tokenizers.features.whisper import WhisperFeatures

    return WhisperFeatures(options)


def _ssl(options: FeatureOptions, model_type: str) -> Features:
    from speechmill.tokenizers.features.ssl import SslFeatures

    return SslFeatures(options, model_type)


FEATURES: Final[Mapping[str, Callable[[FeatureOptions], Features]]] = MappingProxyType(
    {
        "mfcc": _spectral,
        "logmel": _spectral,
        "whisper": _whisper,
        "hubert": partial(_ssl, model_type="hubert"),
        "wavlm": partial(_ssl, model_type="wavlm"),
        "wav2vec2": partial(_ssl, model_type="wav2vec2"),
    }
)
"""Name → a function that imports the kind and opens it."""

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "mfcc": ("n_mfcc",),
    "logmel": (),
    "whisper": ("model", "compute_type"),
    "hubert": ("model", "layer"),
    "wavlm": ("model", "layer"),
    "wav2vec2": ("model", "layer"),
}


def open_features(options: FeatureOptions) -> Features:
    """Open the features that the options name. Weights are looked for, but not loaded.

    Raises:
        JobError: no such kind, or an option that it has no use for or that is out of range.
        MissingExtraError: the kind needs an extra that is not installed.
        ModelError: the weights cannot be found, read or trusted.
    """
    kind = options.kind
    if kind not in FEATURES:
        raise JobError(
            f"there are no features {kind!r}{did_you_mean(kind, FEATURES)} "
            f"there are: {', '.join(FEATURES)}"
        )
    default = FeatureOptions(kind=kind)
    for name in ("model", "layer", "compute_type", "n_mfcc"):
        value = getattr(options, name)
        if name not in _CHOICES[kind] and value != getattr(default, name):
            raise JobError(
                f"{kind} features have no {name.replace('_', '-')} to choose ({value!r}): leave it "
                f"out; what can be chosen: {', '.join(_CHOICES[kind]).replace('_', '-') or 'none'}"
            )
    return FEATURES[kind](options)
