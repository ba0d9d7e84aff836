"""Broken files: each is a right waveform or a clear failure, never a silent half."""

from __future__ import annotations

import io
import random
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.audio import decode, looks_like_audio
from speechmill.audio.formats.flac import FlacCheck
from speechmill.errors import (
    AudioError,
    DamagedError,
    EmptyAudioError,
    NotAudioError,
    TruncatedError,
)
from tests.support.audio_files import (
    ENCODED,
    encoded,
    mp4_with_video,
    pcm_wav,
    remuxed,
    sf_bytes,
    speech,
)
from tests.support.crafted_audio import ogg_checksum

FRAME_S = 0.13  # the longest codec frame here: 4,096 samples of ALAC or FLAC are more, but exact


@cache
def whole(name: str) -> bytes:
    """A recording of 2 s that says how long it is, or whose end shows."""
    if name in ENCODED:
        return encoded(*ENCODED[name])
    if name == "fast_m4a":
        return remuxed(whole("m4a"), "ipod", {"movflags": "faststart"})
    if name == "piped_flac":
        return encoded("flac", "flac", 16000, pipe=True)
    if name == "piped_webm":
        return encoded("webm", "libopus", 48000, pipe=True)
    container, _, subtype = name.partition(":")
    return sf_bytes(container, subtype)


EXACT = [
    "flac", "mka", "m4a", "fast_m4a", "alac", "mp4", "mp3", "mp3_mka", "opus", "ogg_flac", "webm",
    "wma", "piped_flac", "FLAC:PCM_24", "OGG:VORBIS", "WAV:PCM_16", "WAV:FLOAT", "WAV:ULAW",
    "WAV:IMA_ADPCM", "WAV:GSM610", "RF64:PCM_16", "W64:PCM_16", "AIFF:PCM_24", "AU:PCM_16",
    "CAF:PCM_16", "CAF:ALAC_16", "NIST:PCM_16",
]  # fmt: skip
FRAMES_ONLY = ["aac", "mp2", "amr"]  # a cut between two frames does not show
CHECKED = ["flac", "mka", "opus", "ogg_flac", "OGG:VORBIS", "FLAC:PCM_24", "piped_flac"]


@pytest.mark.parametrize("name", EXACT)
def test_a_cut_file_is_a_failure_not_half_a_row(name: str) -> None:
    data = whole(name)
    length_s = decode(data).waveform.duration_s
    rng = random.Random(7)
    cuts = [len(data) * part // 8 for part in range(1, 8)]
    cuts += [rng.randrange(1, len(data)) for _ in range(12)] + [len(data) - 1, 12, 44, 64]
    for cut in cuts:
        try:
            decoded = decode(data[:cut])
        except AudioError:
            continue
        # Between two frames a cut of a streamed file does not show: then the flag says so.
        is_whole = decoded.waveform.duration_s >= length_s - 0.03
        assert is_whole or "unknown_length" in decoded.flags, (cut, len(data))


@pytest.mark.parametrize("name", [name for name in EXACT if not name.startswith("piped")])
def test_files_that_know_their_length_are_not_flagged(name: str) -> None:
    assert decode(whole(name)).flags == ()


@pytest.mark.parametrize("name", FRAMES_ONLY)
def test_a_stream_cut_within_a_frame_is_a_failure(name: str) -> None:
    data = whole(name)
    failures = 0
    for cut in range(len(data) // 2, len(data) // 2 + 40):
        try:
            decode(data[:cut])
        except TruncatedError:
            failures += 1
    assert failures >= 37  # of 40 cuts, at most those between two frames pass


@given(cut=st.integers(1, 10**6), name=st.sampled_from(EXACT))
@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_cut_fails_or_leaves_the_whole_recording(cut: int, name: str) -> None:
    data = whole(name)
    cut %= len(data)
    try:
        decoded = decode(data[:cut])
    except AudioError:
        return
    assert decoded.waveform.duration_s >= 2.0 - 0.03 or "unknown_length" in decoded.flags


@pytest.mark.parametrize("name", ["flac", "mp3", "opus", "WAV:PCM_16", "m4a", "AIFF:PCM_24"])
def test_what_a_cut_file_still_holds_can_be_had_on_demand(name: str) -> None:
    data = whole(name)
    # An MP4 whose index comes last has nothing to give once it is cut.
    data = whole("fast_m4a") if name == "m4a" else data
    decoded = decode(data[: len(data) * 6 // 10], keep_damaged=True)
    assert "truncated" in decoded.flags
    assert 0.5 < decoded.waveform.duration_s < 1.5


def test_the_failure_says_how_much_is_there() -> None:
    data = whole("WAV:PCM_16")
    with pytest.raises(TruncatedError, match=r"1\.00 of 2\.00 s are there"):
        decode(data[: 44 + 32000])


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("filler", ["zeros", "noise", "one bit"])
def test_damage_in_the_middle_is_found_where_the_format_has_checksums(
    name: str, filler: str
) -> None:
    data = whole(name)
    rng = random.Random(5)
    for _ in range(6):
        at = rng.randrange(len(data) // 5, len(data) * 4 // 5)
        broken = bytearray(data)
        if filler == "one bit":
            broken[at] ^= 1 << rng.randrange(8)
        else:
            broken[at : at + 300] = bytes(300) if filler == "zeros" else rng.randbytes(300)
        with pytest.raises((DamagedError, TruncatedError)):
            decode(bytes(broken))


@pytest.mark.parametrize("name", ["aac", "mp3", "m4a", "mp4", "webm", "wma", "mp3_mka", "fast_m4a"])
def test_damage_in_the_middle_never_makes_a_recording_shorter_in_silence(name: str) -> None:
    data = whole(name)
    length_s = decode(data).waveform.duration_s
    rng = random.Random(11)
    for _ in range(10):
        at = rng.randrange(len(data) // 5, len(data) * 4 // 5)
        broken = data[:at] + rng.choice([bytes(400), rng.randbytes(400)]) + data[at + 400 :]
        try:
            decoded = decode(broken)
        except AudioError:
            continue
        assert abs(decoded.waveform.duration_s - length_s) <= FRAME_S


def test_missing_ogg_pages_are_damage() -> None:
    data = whole("opus")
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(pages) >= 5
    with pytest.raises(DamagedError, match="missing"):
        decode(data[: pages[2]] + data[pages[3] :])


@pytest.mark.parametrize("own_page", [False, True])
@pytest.mark.parametrize("padding", [0, 384])
def test_an_empty_packet_at_the_end_of_vorbis_is_no_damage(own_page: bool, padding: int) -> None:
    data = whole("OGG:VORBIS")
    at = data.rindex(b"OggS")
    end = bytearray(data[at:])
    granule, _, sequence = struct.unpack_from("<QII", end, 6)
    struct.pack_into("<Q", end, 6, granule + 384 - padding)  # the last packet holds so many more
    pages = [end]
    if own_page:
        empty = end[:26] + b"\x01\x00"
        struct.pack_into("<I", empty, 18, sequence + 1)
        end[5] = 0  # not the last page any more
        pages.append(empty)
    else:
        end[26] += 1
        end.insert(26 + end[26], 0)
    for page in pages:
        page[22:26] = bytes(4)
        page[22:26] = ogg_checksum(bytes(page)).to_bytes(4, "little")
    ended = data[:at] + b"".join(pages)
    found = decode(ended)
    assert found.flags == ()
    expected, _ = sf.read(io.BytesIO(ended), dtype="float32")
    assert len(expected) == granule + 384 - padding
    np.testing.assert_allclose(found.waveform.samples, expected, atol=1e-4)


def test_missing_flac_frames_are_found_without_md5_and_length() -> None:
    data = whole("piped_flac")
    assert decode(data).flags == ("unknown_length",)
    frames = [at for at in range(100, len(data)) if data.startswith((b"\xff\xf8", b"\xff\xf9"), at)]
    middle = frames[len(frames) // 2]
    after = next(at for at in frames if at > middle + 1000)
    with pytest.raises((DamagedError, TruncatedError)):
        decode(data[:middle] + data[after:])


@pytest.mark.parametrize("name", [*ENCODED, "WAV:PCM_16", "AIFF:PCM_24", "AU:PCM_16", "OGG:VORBIS"])
@pytest.mark.parametrize("tail", [bytes(1024), random.Random(2).randbytes(1000)], ids=["0", "?"])
def test_bytes_appended_do_not_change_the_recording(name: str, tail: bytes) -> None:
    data = whole(name)
    if name == "amr" and any(tail):
        pytest.skip("AMR frames have no mark: garbage behind them is damage")
    decoded = decode(data + tail)
    np.testing.assert_array_equal(decoded.waveform.samples, decode(data).waveform.samples)
    assert set(decoded.flags) <= {"trailing_data"}


def test_bytes_before_an_mp3_are_put_up_with_only_if_they_are_few() -> None:
    data = whole("mp3")
    assert decode(bytes(1000) + data).flags == ("leading_data",)
    with pytest.raises(DamagedError, match="first"):
        decode(bytes(20000) + data)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_streamed_wav_is_read_to_its_end(size: int) -> None:
    data = whole("WAV:PCM_16")
    at = data.index(b"data") + 4
    streamed = data[:4] + struct.pack("<I", size) + data[8:at] + struct.pack("<I", size)
    decoded = decode(streamed + data[at + 4 :])
    assert decoded.flags == ("unknown_length",)
    np.testing.assert_array_equal(decoded.waveform.samples, decode(data).waveform.samples)


def test_the_odd_files(shared_data: Path) -> None:
    folder = shared_data / "oddities/corrupt"
    expected: dict[str, type[AudioError] | tuple[float, tuple[str, ...]]] = {
        "empty.flac": EmptyAudioError,
        "flac_no_extension": (2.365, ()),
        "header_only.flac": EmptyAudioError,
        "html_error_page.wav": NotAudioError,
        "mp3_named.wav": (2.365, ()),
        "nan_inf_float.wav": DamagedError,
        "random_bytes.mp3": NotAudioError,
        "size_too_big.wav": TruncatedError,
        "streaming_size_ffffffff.wav": (2.365, ("unknown_length",)),
        "truncated_half.flac": TruncatedError,
        "zeroed_middle.flac": DamagedError,
    }
    assert {path.name for path in folder.iterdir()} == set(expected)
    for name, outcome in expected.items():
        data = (folder / name).read_bytes()
        if isinstance(outcome, tuple):
            decoded = decode(data)
            assert (decoded.waveform.duration_s, decoded.flags) == outcome, name
        else:
            with pytest.raises(outcome):
                decode(data)


def test_not_finite_samples_are_damage_or_zeros() -> None:
    samples = speech()
    samples[0, [5, 6, 900]] = [np.nan, np.inf, -np.inf]
    with pytest.raises(DamagedError, match="3 samples"):
        decode(pcm_wav(samples))
    decoded = decode(pcm_wav(samples), keep_damaged=True)
    assert decoded.flags == ("non_finite",)
    assert not decoded.waveform.samples[[5, 6, 900]].any()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<!DOCTYPE html><html><body>403", "HTML"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>NoSuchKey', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"hello, this is a transcript\n" * 20, "text"),
        ("hello".encode("utf-16"), "text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "JPEG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"RIFF\x00\x01\x00\x00AVI LIST", "AVI"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(100), "image"),
        (bytes(70000), "zeros"),
        (random.Random(3).randbytes(20000), "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_audio_is_named(data: bytes, text: str) -> None:
    with pytest.raises(NotAudioError, match=text):
        decode(data)
    assert not looks_like_audio(data[:64])


@pytest.mark.parametrize("name", [name for name in EXACT if ":" in name or name == "flac"])
def test_a_header_without_samples_is_empty(name: str) -> None:
    container, _, subtype = name.partition(":")
    if name == "flac":
        container, subtype = "FLAC", "PCM_16"
    data = sf_bytes(container, subtype, np.zeros((1, 0)))
    with pytest.raises((EmptyAudioError, TruncatedError)):
        decode(data)


def test_playlists_and_scripts_in_bytes_open_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(whole("WAV:PCM_16"))
    for script in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 1 RTP/AVP 0\na={secret}\n",
        f"[playlist]\nFile1={secret}\n",
    ):
        for prefix in (b"", b"ID3\x03\x00\x00\x00\x00\x00\x00"):
            with pytest.raises(NotAudioError):
                decode(prefix + script.encode(), keep_damaged=True)


@given(seed=st.integers(0, 10**9), name=st.sampled_from([*EXACT, *FRAMES_ONLY]))
@settings(deadline=None, max_examples=120)
def test_no_bytes_make_anything_but_audio_errors(seed: int, name: str) -> None:
    rng = random.Random(seed)
    data = bytearray(whole(name))
    reach = rng.choice([100, 600, len(data)])
    for _ in range(rng.choice([1, 2, 5])):
        data[rng.randrange(min(reach, len(data)))] = rng.choice([0, 255, 127, rng.randrange(256)])
    try:
        decoded = decode(bytes(data), keep_damaged=bool(seed % 2))
    except AudioError:
        return
    assert len(decoded.waveform.samples)
    assert np.abs(decoded.waveform.samples).max() <= 1.0


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=80)
def test_short_random_bytes_are_refused(data: bytes) -> None:
    looks_like_audio(data)
    with pytest.raises(AudioError):
        decode(data)


def test_variable_flac_blocks_are_told_apart_by_their_first_sample() -> None:
    info = b"\x10\x00\x10\x00" + bytes(6) + (16000 << 44 | 15 << 36 | 8192).to_bytes(8, "big")
    check = FlacCheck(info + bytes(16))
    check.see_packet(b"\xff\xf9\xc9\x08\x00" + bytes(7))
    check.see_packet(b"\xff\xf9\xc9\x08\xe1\x80\x80" + bytes(5))  # sample 4096
    assert check.reaches_end
    assert not check.out_of_order
    check.see_packet(b"\xff\xf9\xc9\x08\x00" + bytes(7))
    assert check.out_of_order


@pytest.mark.parametrize("piped", [False, True])
def test_a_fragmented_mp4_is_whole_or_a_failure(piped: bool) -> None:
    options = (("movflags", "frag_keyframe+empty_moov"), ("frag_duration", "500000"))
    data = encoded("mp4", "aac", 16000, options=options, pipe=piped)
    assert decode(data).waveform.duration_s == pytest.approx(2.0, abs=FRAME_S)
    for cut in range(len(data) * 3 // 10, len(data) - 200, len(data) // 23):
        try:
            assert "unknown_length" in decode(data[:cut]).flags
        except AudioError:
            continue


def test_a_cut_video_is_a_failure() -> None:
    data = mp4_with_video()
    with pytest.raises(TruncatedError):
        decode(data[: len(data) // 2])
