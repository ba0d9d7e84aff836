"""Recordings of every container, mutated: each is sound or an AudioError, in limited time, and none
ends its decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from speechmill.audio import Limits, decode_isolated, isolated
from speechmill.errors import AudioError, DecoderDiedError
from tests.support.audio_files import CONTAINERS, of_container
from tests.support.chaos import Chaos
from tests.support.mutants import mutant

MUTANTS, MANY_MUTANTS = 400, 100_000
AT_ONCE = 100  # mutants, between looks at the clock
SECONDS = 0.4  # of each recording
# What a mutant may ask for: little, so that tens of thousands can ask.
LIMITS = Limits(max_duration_s=600.0)
LONGEST_S = 60.0
"""One may take 10 s of processor time and 1 s a second of sound, where four share two cores."""
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[isolated._Decoders]:
    """Fresh ones, so that those that died are missed."""
    decoders = isolated._Decoders()
    monkeypatch.setattr(isolated, "_decoders", decoders)
    yield decoders
    decoders.close()


def outcome_of(data: bytes, *, keep_damaged: bool) -> str:
    """What becomes of a mutant: "" for sound, or an error's name; else it says what is wrong."""
    began = time.monotonic()
    try:
        decoded = decode_isolated(data, keep_damaged=keep_damaged, limits=LIMITS)
        samples = decoded.waveform.samples
        sound = len(samples) and np.isfinite(samples).all() and np.abs(samples).max() <= 1.0
        outcome = "" if sound else "wrong: it is no sound"
    except DecoderDiedError as error:
        outcome = f"wrong: {error}"
    except AudioError as error:
        outcome = type(error).__name__ if str(error) else "wrong: an error without a text"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        outcome = f"wrong: {error!r}"
    seconds = time.monotonic() - began
    return outcome if seconds < LONGEST_S else f"wrong: it took {seconds:.0f} s"


def test_every_mutant_is_sound_or_an_audio_error_and_no_decoder_dies(
    chaos: Chaos, decoders: isolated._Decoders, tmp_path: Path
) -> None:
    seeds = [of_container(name, SECONDS) for name in CONTAINERS]
    for name, data in zip(CONTAINERS, seeds, strict=True):
        assert outcome_of(data, keep_damaged=False) == "", name
    ask = _asker(chaos, seeds, tmp_path)
    wrong: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: decode_isolated(seeds[0]), range(8)))
        before = set(decoders._all)
        for number in chaos.rounds(MUTANTS // AT_ONCE, MANY_MUTANTS // AT_ONCE):
            for outcome in pool.map(ask, range(number * AT_ONCE, (number + 1) * AT_ONCE)):
                chaos.count("mutants")
                chaos.count("decoded" if not outcome else "wrong" if " " in outcome else outcome)
                if " " in outcome:
                    wrong.append(outcome)
    assert not wrong, "\n".join(wrong[:20])
    assert before <= set(decoders._all)  # also none that was replaced in silence
    assert {"decoded", "DamagedError", "TruncatedError", "NotAudioError"} <= set(chaos.counts)


def _asker(chaos: Chaos, seeds: list[bytes], folder: Path) -> Callable[[int], str]:
    """Make the function from a mutant's number to what becomes of it."""

    def ask(number: int) -> str:
        draw = chaos.draw("mutant", number)
        name = CONTAINERS[number % len(CONTAINERS)]
        data = mutant(seeds[number % len(seeds)], draw, seeds)
        outcome = outcome_of(data, keep_damaged=bool(draw.randrange(2)))
        if not outcome.startswith("wrong"):
            return outcome
        path = folder / f"{name.replace(':', '-')}-{number}"
        path.write_bytes(data)
        return f"{outcome} ({path}, {len(data)} bytes)"

    return ask
