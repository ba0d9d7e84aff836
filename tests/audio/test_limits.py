"""What a recording may cost: bombs end as soon as they pass a limit, honest ones never."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.audio import Limits, decode, limits
from speechmill.audio.limits import Meter
from speechmill.audio.spilling import Spool
from speechmill.errors import (
    DamagedError,
    EmptyAudioError,
    LimitError,
    NotAudioError,
    TruncatedError,
)
from tests.support.audio_files import ENCODED, encoded, pcm_wav, sf_bytes, speech
from tests.support.crafted_audio import ogg_checksum, silent_flac

HOUR_OF_FRAMES = 8000 * 3600 // 65_535
LIMITS_LIFTED = Limits(1e9, 1e9, 1e9, 1e9)


@contextmanager
def within(cpu_s: float) -> Iterator[None]:
    """So much processor time, at most, with a machine that is four times as slow as usual."""
    began = time.thread_time()
    yield
    assert time.thread_time() - began < 4 * cpu_s


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples that were kept, block by block."""
    counts: list[int] = []
    add = Spool.add

    def counting(self: Spool, block: NDArray[np.float32]) -> None:
        counts.append(len(block))
        add(self, block)

    monkeypatch.setattr(Spool, "add", counting)
    return counts


def test_a_hundred_hours_of_silence_are_refused_before_they_are_decoded(spooled: list[int]) -> None:
    bomb = silent_flac(HOUR_OF_FRAMES, declared=100 * 3600 * 8000)
    with within(0.2), pytest.raises(LimitError, match=r"longer than 43,200 s.*--max-duration-s"):
        decode(bomb)
    assert spooled == []


def test_undeclared_silence_is_refused_once_it_is_too_long(spooled: list[int]) -> None:
    bomb = silent_flac(300, declared=0)
    with within(0.5), pytest.raises(LimitError, match="max_duration_s: 600") as caught:
        decode(bomb, limits=Limits(max_duration_s=600.0), keep_damaged=True)
    assert "--retry-failed" in str(caught.value)
    assert sum(spooled) <= 600 * 8000 + 65_535
    assert decode(bomb).waveform.duration_s > 2400


@pytest.mark.parametrize("head", [b"#!AMR\n", b"#!AMR-WB\n"])
def test_ten_megabytes_of_pauses_are_refused_after_a_look(head: bytes) -> None:
    bomb = head + b"\x7c" * 10_000_000  # 55 hours
    with within(0.5), pytest.raises(LimitError, match="longer than 3,600 s"):
        decode(bomb, limits=Limits(max_duration_s=3600.0))


def test_silence_in_huge_blocks_is_refused_by_its_ratio(
    monkeypatch: pytest.MonkeyPatch, spooled: list[int]
) -> None:
    monkeypatch.setattr(limits, "RATIO_FROM_BYTES", 20_000_000)
    bomb = silent_flac(200, declared=0)
    with pytest.raises(LimitError, match=r"5,000 times.*--decode-limit ratio="):
        decode(bomb)
    assert sum(spooled) <= 5_000_000 + 2 * 65_535
    assert decode(bomb, limits=Limits(ratio=20_000)).waveform.duration_s > 1600


@pytest.mark.parametrize("name", ["flac", "opus", "vorbis", "m4a"])
def test_silence_as_it_is_usually_stored_is_far_from_the_ratio(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(seconds: float, sample_rate: int, channels: int) -> NDArray[np.float32]:
        return np.zeros((channels, round(seconds * sample_rate)), np.float32)

    monkeypatch.setattr("tests.support.audio_files.speech", silence)
    if name == "vorbis":
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", 48_000, 1, "VORBIS", format="OGG") as out:
            for _ in range(300):  # libsndfile overflows its stack with all of them at once
                out.write(silence(1, 48_000, 1)[0])
        data = file.getvalue()
    else:
        container, codec, *_ = ENCODED[name]
        data = encoded.__wrapped__(container, codec, 48_000, seconds=300.0)
    ratio = 4 * 300 * 48_000 / len(data)
    assert 100 < ratio < Limits().ratio / 2


def test_what_takes_longer_than_it_sounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRACE_S", 0.05)
    monkeypatch.setattr(limits, "STORED_S", 0.0)
    monkeypatch.setattr(limits, "_STEPS", 10**9)  # not while its structure is looked at
    frame = encoded(*ENCODED["mp3"])
    frame = frame[frame.index(b"\xff", 200) :]
    tag = b"ID3\x03\x00\x00\x00\x00\x00\x00"
    many = b"".join([frame, tag] * 300)  # each is a stream of its own, that is opened anew
    with within(1.0), pytest.raises(LimitError, match=r"processor time.*--decode-limit load="):
        decode(many, limits=Limits(load=1e-9))


def test_broken_packets_do_not_cost_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRACE_S", 0.05)
    monkeypatch.setattr(limits, "STORED_S", 0.0)
    noise = np.random.default_rng(1).bytes(9)
    frame = b"\xff\xf1\x60\x40\x02\x1f\xfc" + noise  # 16 bytes of ADTS at 8 kHz
    with within(0.5), pytest.raises(LimitError, match="load"):
        decode(frame * 60_000)


@pytest.mark.parametrize("channels", [64, 65, 255])
def test_channels_are_limited(channels: int) -> None:
    data = pcm_wav(np.zeros((channels, 1000), np.float32))
    if channels > 64:
        with pytest.raises(LimitError, match=rf"{channels} channels.*--decode-limit channels="):
            decode(data)
    else:
        assert decode(data).channels == channels


def _ogg_pages() -> bytes:
    pages = []
    for number in range(3000):
        page = bytearray(
            struct.pack("<4sBBqIIIB", b"OggS", 0, 2 * (not number), 0, 1, number, 0, 0)
        )
        page[22:26] = ogg_checksum(bytes(page)).to_bytes(4, "little")
        pages.append(bytes(page))
    return b"".join(pages)


EMPTY = 3000
ELEMENTS = {
    "AAC": b"\xff\xf1\x60\x40\x01\x1f\xfc\x00" * EMPTY,
    "ASF": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(8 + 24 * EMPTY),
    "CAF": b"caff\x00\x01\x00\x00" + (b"free" + bytes(8)) * EMPTY,
    "FLAC": b"fLaC" + b"\x01\x00\x00\x00" * EMPTY,
    "MP3": (b"\xff\xf3\x14\xc0" + bytes(20)) * EMPTY,
    "MP4": b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x08free" * EMPTY,
    "Ogg": _ogg_pages(),
    "WebM": b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"
    + b"\xec\x80" * EMPTY,
    "Xing": (b"\xff\xfb\x90\xc0" + bytes(413)) * 5 + b"Xing" * EMPTY,
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_boxes_pages_and_frames_are_limited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_ELEMENTS", 1000)
    with pytest.raises(LimitError, match=r"1,000 boxes, pages or frames.*--max-duration-s"):
        decode(ELEMENTS[name], limits=Limits(max_duration_s=0.5))
    monkeypatch.undo()
    with suppress(DamagedError, EmptyAudioError, NotAudioError, TruncatedError):
        decode(ELEMENTS[name])


@pytest.mark.parametrize("name", ENCODED)
def test_honest_recordings_are_within_the_limits(name: str) -> None:
    data = encoded(*ENCODED[name])
    plain = decode(data, limits=LIMITS_LIFTED)
    tight = decode(data, limits=Limits(max_duration_s=2.3))
    assert np.array_equal(plain.waveform.samples, tight.waveform.samples)
    with pytest.raises(LimitError, match=r"max_duration_s: 1\.5"):
        decode(data, limits=Limits(max_duration_s=1.5))


def test_a_slow_run_behind_a_fast_one_counts_as_what_it_is_resampled_to() -> None:
    meter = Meter(Limits(max_duration_s=3600.0), 10**9)
    meter.sound(1_000_000, 1_000_000)
    meter.sound(600 * 1000, 1000)
    with pytest.raises(LimitError, match=r"2\.8 GB"):
        meter.sound(100 * 1000, 1000)


@given(
    sounds=st.lists(
        st.tuples(st.integers(1, 10**6), st.sampled_from([1000, 8000, 48_000, 10**6])), max_size=30
    ),
    max_duration_s=st.floats(0.1, 100),
)
@settings(deadline=None)
def test_what_a_meter_lets_pass_is_within_its_limits(
    sounds: list[tuple[int, int]], max_duration_s: float
) -> None:
    meter = Meter(Limits(max_duration_s), 1000)
    seconds = octets = 0.0
    for count, rate in sounds:
        try:
            meter.sound(count, rate)
        except LimitError:
            over_s = seconds + count / rate > max_duration_s
            over_bytes = octets + 4 * count * sounds[0][1] / rate > 4 * 192_000 * max_duration_s
            assert over_s or over_bytes
            return
        seconds += count / rate
        octets += 4 * count * max(1.0, sounds[0][1] / rate)
        assert seconds <= max_duration_s
        assert octets <= 4 * 192_000 * max_duration_s


def test_limits_go_over_a_pipe_as_json() -> None:
    for some in (Limits(), limits.NO_LIMITS, Limits(1.5, channels=3)):
        assert Limits(**json.loads(json.dumps(asdict(some), allow_nan=False))) == some


def test_limits_do_not_hide_damage() -> None:
    data = sf_bytes("WAV", "PCM_16", speech())
    with pytest.raises(TruncatedError):
        decode(data[: len(data) // 2])
