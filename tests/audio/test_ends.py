"""Where the sound of a file begins and ends: wrong lengths, and what lies behind the end."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from speechmill.audio import decode
from speechmill.errors import AudioError, DamagedError, EmptyAudioError, TruncatedError
from tests.support.audio_files import (
    encoded,
    mp4_with_video,
    of_container,
    remuxed,
    sf_bytes,
    speech,
)
from tests.support.crafted_audio import shorten
from tests.support.crafted_headers import aiff, au, caf, chunk, fmt, packed, sphere, w64, wav

SOUND = speech(0.5)
SAMPLES, BIG = packed(SOUND, 2, 16), packed(SOUND, 2, 16, order=">")
EXPECTED = (np.frombuffer(SAMPLES, "<i2") / 32768).astype(np.float32)
FMT, DATA = chunk(b"fmt ", fmt(16, 2)), chunk(b"data", SAMPLES)
LIST = chunk(b"LIST", b"INFOISFT\x04\x00\x00\x00abc\x00")

PLAIN = {
    "WAV": wav(FMT, DATA),
    "RF64": wav(FMT, DATA, magic=b"RF64"),
    "W64": w64(fmt(16, 2), SAMPLES),
    "AIFF": aiff(BIG, 16),
    "AIFF-C": aiff(SAMPLES, 16, kind=b"sowt"),
    "CAF": caf(BIG, 16, block=2),
    "AU": au(BIG, 3),
    "SPHERE": sphere(SAMPLES),
}
PACKED = ["m4a", "fast_m4a", "alac", "3gp", "fragments", "wma", "wmav1", "webm", "mka"]
PACKED += ["piped_webm", "amr", "g722", "adpcm", "CAF:ALAC_16", "WAV:GSM610"]


def assert_same(data: bytes, *flags: str, sound: Any = EXPECTED) -> None:
    decoded = decode(data)
    assert decoded.flags == flags
    np.testing.assert_array_equal(decoded.waveform.samples, sound)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("times", [2, 3])
def test_plain_files_joined_end_to_end_are_read_in_full(name: str, times: int) -> None:
    assert_same(PLAIN[name] * times, sound=np.tile(EXPECTED, times))


@pytest.mark.parametrize("name", PACKED)
def test_other_files_joined_end_to_end_are_read_in_full(name: str) -> None:
    data = of_container(name)
    one = decode(data)
    joined = decode(data + data)
    assert joined.flags == one.flags
    assert joined.waveform.duration_s == pytest.approx(2 * one.waveform.duration_s, abs=0.05)
    start = len(one.waveform.samples) - 1000
    np.testing.assert_array_equal(joined.waveform.samples[:start], one.waveform.samples[:start])


def test_files_of_other_forms_behind_a_file_are_read_as_well() -> None:
    stereo = sf_bytes("WAV", "PCM_24", speech(0.5, 32000, 2), 32000)
    decoded = decode(PLAIN["WAV"] + stereo + of_container("adpcm", 0.5))
    assert decoded.flags == ()
    assert (decoded.sample_rate, decoded.channels) == (16000, 1)
    assert decoded.waveform.duration_s == pytest.approx(1.5, abs=0.1)
    np.testing.assert_array_equal(decoded.waveform.samples[: len(EXPECTED)], EXPECTED)


def test_senseless_values_in_a_file_of_another_rate_are_damage() -> None:
    wild = speech(0.5, 8000)
    wild[0, 100:200] = 3e38
    wild[0, 150:160] = np.nan
    data = PLAIN["WAV"] + sf_bytes("WAV", "FLOAT", wild, 8000)
    for keep_damaged in (False, True):
        with pytest.raises(DamagedError):
            decode(data, keep_damaged=keep_damaged)


@pytest.mark.parametrize("name", PLAIN)
def test_a_cut_within_the_second_of_two_files_is_a_failure(name: str) -> None:
    data = PLAIN[name] + PLAIN[name][:-5000]
    with pytest.raises(TruncatedError, match=r"of 1\.00 s"):
        decode(data)


def test_a_file_behind_one_of_unknown_length_is_found() -> None:
    piped = wav(FMT, chunk(b"data", SAMPLES, size=0xFFFFFFFF))
    assert_same(piped + PLAIN["WAV"], "unknown_length", sound=np.tile(EXPECTED, 2))
    assert_same(piped + piped, "unknown_length", sound=np.tile(EXPECTED, 2))


def test_files_of_odd_lengths_without_padding_are_joined_as_well() -> None:
    samples = packed(SOUND[:, :-1], 1, 8, unsigned=True)
    signed = packed(SOUND[:, :-1], 1, 8)
    for name, data in (
        ("WAV", wav(chunk(b"fmt ", fmt(8, 1)), chunk(b"data", samples))[:-1]),
        ("W64", w64(fmt(8, 1), samples)[:-1]),
        ("AIFF", aiff(signed, 8)[:-1]),
        ("AU", au(signed, 2)),
    ):
        decoded = decode(data + data)
        assert decoded.flags == (), name
        assert len(decoded.waveform.samples) == 2 * len(samples), name


def test_ima_adpcm_behind_plain_samples_in_aiff_is_read() -> None:
    packed_file = sf_bytes("AIFF", "IMA_ADPCM", SOUND)
    decoded = decode(PLAIN["AIFF"] + packed_file)
    assert decoded.flags == ()
    np.testing.assert_array_equal(decoded.waveform.samples[: len(EXPECTED)], EXPECTED)
    alone = decode(packed_file).waveform.samples
    np.testing.assert_array_equal(decoded.waveform.samples[len(EXPECTED) :], alone)


def test_a_file_behind_that_holds_no_sound_is_flagged() -> None:
    assert_same(PLAIN["WAV"] + wav(FMT), "trailing_data")
    assert_same(PLAIN["WAV"] + wav(chunk(b"fmt ", fmt(16, 2, tag=0x22)), DATA), "trailing_data")


@pytest.mark.parametrize(
    "name", [*PLAIN, "m4a", "fast_m4a", "3gp", "wma", "webm", "mka", "g722", "flac"]
)
def test_a_recorder_that_went_on_behind_the_end_is_flagged(name: str) -> None:
    data = PLAIN.get(name) or of_container(name)
    more = packed(speech(1.0, seed=3), 2, 16)
    assert_same(data + more, "trailing_data", sound=decode(data).waveform.samples)


def test_sound_that_the_index_of_an_mp4_does_not_know_is_flagged() -> None:
    data = of_container("m4a")
    sound = decode(data).waveform.samples
    more = struct.pack(">I", 8 + 4000) + b"mdat" + np.random.default_rng(0).bytes(4000)
    assert_same(data + more, "trailing_data", sound=sound)
    assert_same(data + struct.pack(">I", 8 + 4000) + b"free" + bytes(4000), sound=sound)


BEHIND = {
    "zeros": bytes(3000),
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\x03\x00\x00\x00\x00\x01\x00" + b"TIT2" + bytes(124),
    "APE": b"APETAGEX" + bytes(100),
}


@pytest.mark.parametrize("name", [*PLAIN, "m4a", "wma", "webm", "flac"])
@pytest.mark.parametrize("behind", BEHIND)
def test_tags_and_padding_behind_the_end_are_not_flagged(name: str, behind: str) -> None:
    data = PLAIN.get(name) or of_container(name)
    assert_same(data + BEHIND[behind], sound=decode(data).waveform.samples)


def test_known_chunks_behind_the_samples_are_not_flagged() -> None:
    more = LIST + chunk(b"id3 ", b"ID3\x03" + bytes(31)) + chunk(b"bext", bytes(602))
    assert_same(wav(FMT, DATA, more, chunk(b"abcd", bytes(9))))
    assert_same(wav(FMT, DATA, LIST[:-3]))  # cut off within a tag
    assert_same(aiff(BIG, 16, behind=chunk(b"ANNO", b"a note", order=">")))
    assert_same(caf(BIG, 16, block=2, behind=b"free" + struct.pack(">q", 50) + bytes(50)))
    assert_same(w64(fmt(16, 2), SAMPLES, behind=b"bext" + bytes(12) + struct.pack("<Q", 24)))


def test_two_data_chunks_are_read_one_after_the_other() -> None:
    half = len(SAMPLES) // 2
    first, second = chunk(b"data", SAMPLES[:half]), chunk(b"data", SAMPLES[half:])
    assert_same(wav(FMT, first, second))
    assert_same(wav(FMT, first, LIST, second, LIST))
    with pytest.raises(TruncatedError):
        decode(wav(FMT, first, second)[:-100])


def test_lists_of_samples_and_silence_are_read_in_turn() -> None:
    half = len(SAMPLES) // 2
    first, second = chunk(b"data", SAMPLES[:half]), chunk(b"data", SAMPLES[half:])
    silence = chunk(b"slnt", struct.pack("<I", 100_000))
    assert_same(wav(FMT, chunk(b"LIST", b"wavl" + first + second)))
    decoded = decode(wav(FMT, chunk(b"LIST", b"wavl" + first + silence + second)))
    middle = len(EXPECTED) // 2
    assert decoded.flags == ()
    expected = np.concatenate([EXPECTED[:middle], np.zeros(100_000), EXPECTED[middle:]])
    np.testing.assert_array_equal(decoded.waveform.samples, expected)


@pytest.mark.parametrize("samples", [SAMPLES, packed(SOUND, 1, 8, unsigned=True)], ids=["16", "8"])
def test_chunks_in_any_order_and_without_padding_are_found(samples: bytes) -> None:
    width = 1 if len(samples) == len(EXPECTED) else 2
    form, data = chunk(b"fmt ", fmt(8 * width, width)), chunk(b"data", samples)
    expected = decode(wav(form, data)).waveform.samples
    odd = b"LIST" + struct.pack("<I", 11) + b"INFOISFTabc"
    for file in (
        wav(data, form),
        wav(odd, form, data),
        wav(form, odd, data),
        wav(form, odd, odd, data, odd, LIST),
        wav(form, chunk(b"JUNK", bytes(27)), data),
    ):
        assert_same(file, sound=expected)


def test_a_chunk_of_a_wrong_size_before_the_samples_does_not_hide_them() -> None:
    for size in (6, 40, 100, 100_000):
        assert_same(wav(FMT, chunk(b"LIST", b"INFOISFTabcd", size=size), DATA), "wrong_header")


def test_the_oldest_headers_have_no_bits_a_sample() -> None:
    assert_same(wav(chunk(b"fmt ", fmt(16, 2)[:14]), DATA), "wrong_header")


@pytest.mark.parametrize(
    ("chunks", "error", "text"),
    [
        ((FMT,), EmptyAudioError, "has no data chunk"),
        ((FMT, chunk(b"data", b"")), EmptyAudioError, "holds no samples"),
        ((DATA,), DamagedError, "has no fmt chunk"),
        ((chunk(b"fmt ", fmt(16, 2)[:8]), DATA), DamagedError, "fmt chunk has 8 bytes"),
        ((FMT, bytes(50)), DamagedError, "at byte 36 there should be a chunk"),
    ],
    ids=["no data", "no samples", "no fmt", "short fmt", "zeros"],
)
def test_what_is_missing_of_a_wav_is_named(
    chunks: tuple[bytes, ...], error: type[AudioError], text: str
) -> None:
    with pytest.raises(error, match=text):
        decode(wav(*chunks))


def test_a_length_that_counts_the_header_is_flagged() -> None:
    size = len(SAMPLES)
    for excess in (8, 36, 44):
        assert_same(wav(FMT, chunk(b"data", SAMPLES, size=size + excess)), "wrong_length")
    assert_same(aiff(BIG, 16, size=size + 16), "wrong_length")
    assert_same(au(BIG, 3, size=size + 28), "wrong_length")
    assert_same(w64(fmt(16, 2), SAMPLES, size=size + 24), "wrong_length")
    for excess in (2, 42, 46, 88, 1024):
        with pytest.raises(TruncatedError):
            decode(wav(FMT, chunk(b"data", SAMPLES, size=size + excess)))


def test_numbers_of_samples_that_disagree_with_the_size_lose_no_sound() -> None:
    half = len(EXPECTED) // 2
    assert_same(aiff(BIG, 16, frames=half), "wrong_length")
    assert_same(aiff(BIG, 16, size=8 + half), "wrong_length")  # what follows is no chunk
    with pytest.raises(TruncatedError):
        decode(aiff(BIG, 16, frames=len(EXPECTED) + 100))
    with pytest.raises(TruncatedError):
        decode(sphere(SAMPLES, sample_count=len(EXPECTED) + 100))
    both = sphere(packed(np.tile(SOUND, (2, 1)), 2, 16), channel_count=2, sample_count=16_000)
    assert_same(both, "wrong_length")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_what_was_written_to_a_pipe_is_read_to_its_end(size: int) -> None:
    assert_same(wav(FMT, chunk(b"data", SAMPLES, size=size)), "unknown_length")
    assert_same(aiff(BIG, 16, size=size, frames=0), "unknown_length")
    if size != 0x7FFFF000:
        assert_same(au(BIG, 3, size=size), "unknown_length")
    assert_same(caf(BIG, 16, block=2, size=-1), "unknown_length")


def test_shorten_in_a_sphere_is_whole_or_a_failure() -> None:
    steps = [int(step) for step in np.frombuffer(SAMPLES, "<i2")]
    told: dict[str, Any] = {"sample_coding": "pcm,embedded-shorten-v2.00"}
    data = sphere(shorten(steps), **told, sample_count=len(steps))
    assert_same(data)
    fewer = sphere(shorten(steps), **told, sample_count=len(steps) - 1000)
    assert len(decode(fewer).waveform.samples) == len(steps)
    for part in (0.3, 0.5, 0.9):
        with pytest.raises(TruncatedError, match=r"of 0\.50 s"):
            decode(data[: int(part * len(data))])
    assert decode(data[: len(data) // 2], keep_damaged=True).flags == ("truncated",)


def test_a_caf_whose_table_knows_more_packets_is_truncated() -> None:
    data = bytearray(of_container("CAF:ALAC_16"))
    at = data.index(b"pakt") + 12
    packets, valid = struct.unpack_from(">qq", data, at)
    assert packets > 0
    struct.pack_into(">q", data, at + 8, valid + 100)
    with pytest.raises(TruncatedError):
        decode(bytes(data))


def late(seconds: float) -> bytes:
    """An M4A whose edit list begins with so many seconds of nothing."""
    data = bytearray(encoded("ipod", "aac", 16000))
    moov = data.index(b"moov")
    mdhd = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    at = data.index(b"elst") - 4
    entries = bytes(data[at + 16 : at + 28])
    assert struct.unpack_from(">I", data, at + 12)[0] == 1
    empty = struct.pack(">IiI", round(seconds * mdhd), -1, 0x10000)
    body = struct.pack(">III", 0, 2, 0)[:8] + empty + entries
    data[at : at + 28] = struct.pack(">I", 8 + len(body)) + b"elst" + body
    for name in (b"moov", b"trak", b"edts"):
        place = data.index(name) - 4
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + 12)
    assert moov > data.index(b"mdat")  # no offset moves
    return bytes(data)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 400.0])
def test_sound_that_starts_late_in_an_mp4_keeps_its_times(seconds: float) -> None:
    usual = decode(encoded("ipod", "aac", 16000)).waveform
    decoded = decode(late(seconds))
    assert decoded.flags == ("late_start",)
    count = round(seconds * 16000)
    assert not decoded.waveform.samples[:count].any()
    np.testing.assert_array_equal(decoded.waveform.samples[count:], usual.samples)


def test_sound_that_starts_some_frames_late_is_left_as_it_is() -> None:
    decoded = decode(late(0.05))
    assert decoded.flags == ()
    assert decoded.waveform.duration_s == pytest.approx(2.0)


def test_a_late_start_hides_no_lost_end() -> None:
    data = remuxed(late(1.0), "ipod", {"movflags": "faststart"})
    assert decode(data).flags == ("late_start",)
    with pytest.raises(TruncatedError):
        decode(data[: len(data) * 8 // 10])


@pytest.mark.parametrize("late_s", [0.0, 0.05, 1.0])
def test_sound_that_starts_behind_the_pictures_of_a_webm_keeps_its_times(late_s: float) -> None:
    data = mp4_with_video(2.0, container="matroska", late_s=late_s)
    decoded = decode(data)
    assert set(decoded.flags) - {"several_tracks"} == ({"late_start"} if late_s == 1.0 else set())
    first = int(np.flatnonzero(np.abs(decoded.waveform.samples) > 0.01)[0])
    expected = late_s if late_s == 1.0 else 0.0
    assert first / decoded.sample_rate == pytest.approx(expected, abs=0.1)
