"""Transcribers by name. Adding one is one file and one line in ``TRANSCRIBERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError, did_you_mean
from speechmill.transcribers.base import Transcriber, TranscriberOptions

__all__ = ["TRANSCRIBERS", "TranscriberOptions", "open_transcriber", "resolve_compute_type"]


def _whisper(model: str, options: TranscriberOptions) -> Transcriber:
    from speechmill.transcribers.whisper import WhisperTranscriber

    return WhisperTranscriber(model, options)


def _openai_whisper(model: str, options: TranscriberOptions) -> Transcriber:
    from speechmill.transcribers.openai_whisper import OpenAIWhisperTranscriber

    return OpenAIWhisperTranscriber(model, options)


def _transformers(model: str, options: TranscriberOptions) -> Transcriber:
    from speechmill.transcribers.transformers import open_transformers

    return open_transformers(model, options)


def _fake(model: str, options: TranscriberOptions) -> Transcriber:
    from speechmill.transcribers.fake import FakeTranscriber

    return FakeTranscriber.open(model, options.language)


TRANSCRIBERS: Final[Mapping[str, Callable[[str, TranscriberOptions], Transcriber]]] = (
    MappingProxyType(
        {
            "whisper": _whisper,
            "openai-whisper": _openai_whisper,
            "transformers": _transformers,
            "fake": _fake,
        }
    )
)
"""Name → a function that imports the transcriber's class and makes one."""


def open_transcriber(
    name: str, model: str, options: TranscriberOptions | None = None
) -> Transcriber:
    """Open the transcriber ``name`` with a model, ready for use.

    Args:
        name: one of ``TRANSCRIBERS``.
        model: a name such as ``base``, a folder, or a hub id; ``fake:0.05`` for a fake that takes
            0.05 s a stretch of speech.
        options: what else it is told.

    Raises:
        JobError: no such transcriber, or an option that it, the model or the device cannot do.
        MissingExtraError: the transcriber needs an extra that is not installed.
        ModelError: the weights cannot be found, read or trusted.
    """
    if name not in TRANSCRIBERS:
        raise JobError(
            f"there is no transcriber {name!r}{did_you_mean(name, TRANSCRIBERS)} "
            f"there are: {', '.join(sorted(TRANSCRIBERS))}"
        )
    return TRANSCRIBERS[name](model, options or TranscriberOptions())


def resolve_compute_type(device: str, compute_type: str) -> tuple[str, str]:
    """What ``auto`` means on this machine: the device, and the number format on it.

    Raises:
        JobError: there is no such device here, or it does not support the format.
    """
    from speechmill.transcribers import ctranslate

    placement = ctranslate.place(device, compute_type)
    return placement.device, placement.compute_type
