"""What FFmpeg can decode and what we say of it; and codecs that need more than FFmpeg's default."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechmill.audio import EXTENSIONS, decode
from speechmill.audio.formats.mpeg import amr_pauses
from speechmill.audio.packets import CODECS, WITH_PAUSES
from speechmill.errors import DamagedError, TruncatedError
from tests.support.audio_files import ENCODED, encoded, remuxed
from tests.support.crafted_audio import ogg_checksum

DOCS = (Path(__file__).parents[2] / "docs" / "audio.md").read_text(encoding="utf-8")


def _audio_decoders() -> set[str]:
    found = set()
    for name in av.codecs_available:
        try:
            codec = av.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:  # an encoder only
            continue
        if codec.type == "audio":
            found.add(codec.name)
    return found


def test_every_decoder_of_sound_is_used_or_left_out_for_a_reason() -> None:
    table = DOCS.partition("## What is not read")[2].partition("| Why |")[2]
    listed = re.findall(r"`([^`/]+)`", table.partition("\n\n")[0])
    assert len(listed) == len(set(listed))
    there, used = _audio_decoders(), CODECS | set(WITH_PAUSES.values())
    assert there - used - set(listed) == set(), "neither used nor listed with a reason"
    assert set(listed) & used == set(), "used, and listed as left out"


def test_the_docs_name_the_extensions_that_are_read() -> None:
    assert f"`{' '.join(EXTENSIONS)}`" in DOCS


def test_g722_in_wav_is_read_in_full() -> None:
    data = encoded("wav", "g722", 16000)
    decoded = decode(data)
    assert decoded.waveform.duration_s == pytest.approx(2.0, abs=0.001)
    assert decoded.flags == ()
    with pytest.raises(TruncatedError):
        decode(data[: len(data) * 2 // 3])


def test_g722_in_w64_is_read_as_well() -> None:
    assert decode(encoded("w64", "g722", 16000)).waveform.duration_s == pytest.approx(2.0, abs=0.03)


def _amr(frames: list[bytes], *, wide: bool = False) -> bytes:
    return (b"#!AMR-WB\n" if wide else b"#!AMR\n") + b"".join(frames)


def _frames_of(data: bytes) -> list[bytes]:
    """The frames of an AMR file of 12.2 kbit/s."""
    return [data[at : at + 32] for at in range(6, len(data), 32)]


SID, NO_DATA = b"\x44" + bytes(5), b"\x7c"
WIDE_SID = b"\x4c" + bytes(5)


def test_amr_with_pauses_is_read_in_full() -> None:
    spoken = _frames_of(encoded(*ENCODED["amr"]))
    frames = [*spoken[:40], SID, *[NO_DATA] * 60, *spoken[40:]]
    decoded = decode(_amr(frames))
    assert decoded.waveform.duration_s == pytest.approx(0.02 * len(frames))
    assert decoded.flags == ()
    loud = decoded.waveform.samples[: 40 * 160]
    assert np.abs(loud).max() > 0.05
    with pytest.raises(TruncatedError):
        decode(_amr(frames)[:-5])


@given(pattern=st.lists(st.sampled_from(["spoken", "sid", "nothing"]), min_size=2, max_size=60))
@settings(deadline=None, max_examples=40)
def test_amr_is_as_long_as_its_frames_wherever_the_pauses_are(pattern: list[str]) -> None:
    spoken = iter(_frames_of(encoded(*ENCODED["amr"])))
    frames = [{"sid": SID, "nothing": NO_DATA}.get(kind) or next(spoken) for kind in pattern]
    decoded = decode(_amr(frames))
    assert len(decoded.waveform.samples) == 160 * len(frames)


def test_amr_without_pauses_has_the_samples_that_it_always_had() -> None:
    data = encoded(*ENCODED["amr"])
    spoken = decode(data).waveform.samples
    paused = decode(data + NO_DATA).waveform.samples[: len(spoken)]
    assert not np.array_equal(paused, spoken)  # another decoder …
    assert np.corrcoef(paused, spoken)[0, 1] > 0.99  # … of the same sound


@pytest.mark.parametrize("head", [b"#!AMR\n", b"#!AMR-WB\n"])
def test_nothing_but_pauses_is_as_long_as_it_was(head: bytes) -> None:
    wide = head != b"#!AMR\n"
    data = head + (WIDE_SID if wide else SID) + NO_DATA * 199
    decoded = decode(data)
    assert decoded.sample_rate == (16000 if wide else 8000)
    assert decoded.waveform.duration_s == pytest.approx(4.0)


def test_amr_with_pauses_is_read_in_3gp_as_well() -> None:
    spoken = _frames_of(encoded(*ENCODED["amr"]))
    data = _amr([*spoken[:40], SID, *[NO_DATA] * 60, *spoken[40:]])
    decoded = decode(remuxed(data, "3gp", {}))
    assert decoded.waveform.duration_s == pytest.approx(0.02 * (len(spoken) + 61), abs=0.03)


def test_a_frame_that_was_lost_is_damage_also_where_there_are_pauses() -> None:
    lost = b"\x74"
    with pytest.raises(DamagedError, match="packets cannot be decoded"):
        decode(_amr([WIDE_SID, *[NO_DATA] * 50, lost, *[NO_DATA] * 50], wide=True))


def test_pauses_are_told_from_other_frames() -> None:
    speech = b"\x3c" + bytes(31)
    assert amr_pauses(SID, wide=False)
    assert amr_pauses(speech + NO_DATA, wide=False)
    assert not amr_pauses(speech, wide=False)
    assert not amr_pauses(speech[:20] + NO_DATA, wide=False)
    assert not amr_pauses(b"", wide=False)
    assert not amr_pauses(b"\x74", wide=True)  # speech was lost


def _with_pre_skip(data: bytes, pre_skip: int) -> bytes:
    """An Ogg Opus file that says that so many samples are not played."""
    page, at = bytearray(data), data.index(b"OpusHead")
    struct.pack_into("<H", page, at + 10, pre_skip)
    end = 27 + 1 + page[27]
    page[22:26] = bytes(4)
    page[22:26] = ogg_checksum(bytes(page[:end])).to_bytes(4, "little")
    return bytes(page)


@given(pre_skip=st.integers(0, 65_535))
@example(pre_skip=65_535)
@settings(deadline=None, max_examples=30)
def test_opus_is_whole_whatever_it_skips_first(pre_skip: int) -> None:
    data = encoded("ogg", "libopus", 48000, seconds=3.0)
    usual = decode(data).waveform
    decoded = decode(_with_pre_skip(data, pre_skip))
    first = struct.unpack_from("<H", data, data.index(b"OpusHead") + 10)[0]
    assert decoded.flags == ()
    assert abs(len(decoded.waveform.samples) - (len(usual.samples) + first - pre_skip)) <= 960


@pytest.mark.parametrize("container", ["webm", "mp4"])
def test_opus_in_other_containers_is_whole_whatever_it_skips_first(container: str) -> None:
    data = _with_pre_skip(encoded("ogg", "libopus", 48000, seconds=3.0), 50_000)
    decoded = decode(remuxed(data, container, {}))
    assert 3.0 - 50_000 / 48_000 - 0.05 < decoded.waveform.duration_s <= 3.03


def test_a_recording_whose_beginning_was_trimmed_by_an_edit_list_is_whole() -> None:
    data = bytearray(encoded("ipod", "aac", 16000, seconds=3.0))
    at = data.index(b"elst") + 4
    _, count, duration, start, _ = struct.unpack_from(">IIIiI", data, at)
    assert count == 1
    struct.pack_into(">Ii", data, at + 8, duration - 1000, start + 16_000)
    decoded = decode(bytes(data))
    assert decoded.flags == ()
    assert decoded.waveform.duration_s == pytest.approx(2.0, abs=0.1)
