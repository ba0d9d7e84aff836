"""What steers the spelling, and nothing else."""

from __future__ import annotations

import pytest

from speechmill.errors import JobError
from tests.support.weights import speech
from tests.support.whispers import CHURCHYARDS, one, opened


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_numbers_are_spelt_out_on_demand(window: str) -> None:
    path = "speech/p225/p225_003.wav"  # "Six spoons of fresh snow peas, five thick slabs …"
    spelt = one(opened("tiny.en", suppress_numerals=True, window=window), speech(path)).text.lower()
    assert not any(c.isdigit() for c in spelt)
    assert "six" in spelt
    assert "five" in spelt


@pytest.mark.parametrize("window", ["adaptive", "full"])
@pytest.mark.parametrize("how", ["hotwords", "initial_prompt"])
def test_names_are_spelt_as_the_prompt_has_them(how: str, window: str) -> None:
    path = "speech/2033/2033-164914-0002.flac"  # "… ay Zau al Makan …" and the like
    plain = one(opened("base", language="en", window=window), speech(path)).text
    told = one(opened("base", language="en", window=window, **{how: "eunuch"}), speech(path)).text
    assert "eunuch" not in plain.lower()
    assert "eunuch" in told.lower()


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_prompts_and_hotwords_of_any_length_leave_room_for_the_text(window: str) -> None:
    told = "alpha bravo charlie delta echo foxtrot " * 60
    whisper = opened(
        "tiny.en", initial_prompt=told, hotwords=told, window=window, temperature=(0.0,)
    )
    assert one(whisper, speech(CHURCHYARDS)).text


@pytest.mark.parametrize("how", ["hotwords", "initial_prompt"])
def test_prompts_that_would_steer_the_decoder_are_refused(how: str) -> None:
    with pytest.raises(JobError, match="must be plain text"):
        opened("tiny.en", **{how: "<|endoftext|>"})
