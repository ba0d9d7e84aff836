"""Transcribers by name. Adding one is one file and one line in ``TRANSCRIBERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError
from speechmill.transcribers.base import Transcriber

__all__ = ["TRANSCRIBERS", "open_transcriber", "resolve_compute_type"]


def _whisper(
    model: str,
    *,
    language: str | None,
    device: str,
    compute_type: str,
    beam_size: int,
    cpu_threads: int,
) -> Transcriber:
    from speechmill.transcribers.whisper import (
        WhisperTranscriber,
    )

    return WhisperTranscriber(
        model,
        language=language,
        device=device,
        compute_type=compute_type,
        beam_size=beam_size,
        cpu_threads=cpu_threads,
    )


def _fake(model: str, *, language: str | None, **_: object) -> Transcriber:
    from speechmill.transcribers.fake import FakeTranscriber

    return FakeTranscriber.open(model, language)


TRANSCRIBERS: Final[Mapping[str, Callable[..., Transcriber]]] = MappingProxyType(
    {"whisper": _whisper, "fake": _fake}
)
"""Name → a function that imports the transcriber's class and makes one."""


def open_transcriber(
    name: str,
    *,
    model: str,
    language: str | None,
    device: str,
    compute_type: str,
    beam_size: int,
    cpu_threads: int = 0,
) -> Transcriber:
    """Open the transcriber ``name`` with a model, ready for use.

    Args:
        name: ``whisper`` or ``fake``.
        model: a name such as ``base``, a folder, or a hub id; ``fake:0.05`` for a fake that takes
            0.05 s a waveform.
        language: code or English name of the language spoken; None to detect it per waveform.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        compute_type: ``auto``, or a number format that the device supports.
        beam_size: beams of the decoder; 1 is greedy.
        cpu_threads: processor threads of the model; 0 is one a core.

    Raises:
        JobError: no such transcriber, or an option that it, the model or the device cannot do.
        ModelError: the weights cannot be found, read or trusted.
    """
    if name not in TRANSCRIBERS:
        near = get_close_matches(name, TRANSCRIBERS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ";"
        raise JobError(
            f"there is no transcriber {name!r}{meant} there are: {', '.join(sorted(TRANSCRIBERS))}"
        )
    if beam_size < 1 or cpu_threads < 0:
        raise JobError(
            f"beam_size must be at least 1 and cpu_threads at least 0, "
            f"not {beam_size} and {cpu_threads}"
        )
    return TRANSCRIBERS[name](
        model,
        language=language,
        device=device,
        compute_type=compute_type,
        beam_size=beam_size,
        cpu_threads=cpu_threads,
    )


def resolve_compute_type(device: str, compute_type: str) -> tuple[str, str]:
    """What ``auto`` means on this machine: the device, and the number format on it.

    Raises:
        JobError: there is no such device here, or it does not support the format.
    """
    from speechmill.transcribers.whisper import (
        resolve_compute_type as resolve,
    )

    return resolve(device, compute_type)
