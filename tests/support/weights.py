"""Weights and speech for the tests that need them.

What is missing is a skip on a laptop and a failure where ``CI`` is ``true``.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from faster_whisper import decode_audio
from numpy.typing import NDArray

from speechmill.errors import ModelError
from speechmill.models.weights import Model, resolve_whisper

SAMPLE_RATE = 16_000
DATA = Path(__file__).parents[3] / "shared" / "data"


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def whisper(name: str) -> Model:
    """The weights of a Whisper model; they must be on this machine."""
    try:
        return resolve_whisper(name)
    except ModelError as error:
        missing(str(error))


@cache
def speech(path: str) -> NDArray[np.float32]:
    """A recording of the shared data, float32 [num_samples] at 16 kHz. Not to be written to."""
    if not DATA.is_dir():
        pytest.skip(f"the speech data is not in {DATA}")
    waveform = np.asarray(decode_audio(str(DATA / path), sampling_rate=SAMPLE_RATE), np.float32)
    waveform.setflags(write=False)
    return waveform
