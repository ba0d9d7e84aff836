"""Headers of codecs, and of plain samples in MP4 and Matroska, whose fields disagree."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from speechmill.audio import decode
from speechmill.errors import AudioError, DamagedError
from tests.support.audio_files import encoded, of_container, sf_bytes, speech


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    """The file with another number in one of its fields."""
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


@pytest.mark.parametrize("name", ["WAV:IMA_ADPCM", "WAV:MS_ADPCM", "W64:IMA_ADPCM", "adpcm"])
def test_blocks_of_adpcm_that_hold_another_number_of_samples_fail(name: str) -> None:
    data = of_container(name)
    at = data.index(b"fmt ") + (24 if name.startswith("W64") else 8)
    decode(data)
    for place, form, value in (
        *((2, "<H", channels) for channels in (0, 2, 3)),
        (4, "<I", 0),
        *((12, "<H", block) for block in (0, 1, 60, 256, 2048)),
        *((18, "<H", held) for held in (1, 100, 2000)),
    ):
        with pytest.raises(DamagedError, match=r"header"):
            decode(patched(data, at + place, form, value))
    slower = decode(patched(data, at + 4, "<I", 8000))
    assert slower.flags == (
        () if name == "adpcm" else ("wrong_header",)
    )  # it states no bytes a second


@pytest.mark.parametrize("seconds", [0.2, 0.5, 2.0])
@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_adpcm_of_two_channels_is_whole_however_short(subtype: str, seconds: float) -> None:
    sound = speech(seconds, channels=2)
    samples = decode(sf_bytes("WAV", subtype, sound)).waveform.samples
    assert 0 <= len(samples) - sound.shape[1] < 1017
    mean = sound.mean(axis=0)
    assert np.corrcoef(samples[: len(mean)], mean)[0, 1] > 0.99


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_s32be", "pcm_f32le", "pcm_u8"])
def test_plain_samples_in_mp4_that_disagree_with_their_index_fail(codec: str) -> None:
    data = encoded("mov", codec, 16000, seconds=0.5)
    whole = decode(data).waveform.samples
    entry = data.index(b"stsd") + 12
    for place, values in ((24, (0, 2, 3)), (26, (8, 16, 24, 32))):
        for value in values:
            try:
                decoded = decode(patched(data, entry + place, ">H", value))
            except AudioError:
                continue
            np.testing.assert_array_equal(decoded.waveform.samples, whole)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le"])
def test_plain_samples_in_matroska_that_disagree_with_its_length_fail(codec: str) -> None:
    data = encoded("matroska", codec, 16000)
    whole = decode(data).waveform.samples
    for mark, values in ((b"\x62\x64\x81", (8, 16, 20, 24, 32)), (b"\x9f\x81", (2, 3))):
        for value in values:
            at = data.index(mark) + len(mark)
            try:
                decoded = decode(patched(data, at, ">B", value))
            except AudioError:
                continue
            np.testing.assert_array_equal(decoded.waveform.samples, whole)
