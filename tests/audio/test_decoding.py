"""What decode and resample promise about whole recordings; test_audio_damage.py has the others."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.audio import EXTENSIONS, decode, decode_isolated, looks_like_audio, resample
from speechmill.errors import DamagedError, NotAudioError
from speechmill.records import Waveform
from tests.support.audio_files import (
    ENCODED,
    encoded,
    mp4_with_video,
    pcm_wav,
    remuxed,
    sf_bytes,
    speech,
)

PCM = [
    (container, subtype)
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC")
    for subtype in (
        "PCM_U8",
        "PCM_S8",
        "PCM_16",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
    )
    if soundfile.check_format(container, subtype)
]


@pytest.mark.parametrize(("container", "subtype"), PCM)
def test_plain_samples_equal_libsndfile_bit_for_bit(container: str, subtype: str) -> None:
    data = sf_bytes(container, subtype)
    expected, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    decoded = decode(data)
    assert (decoded.sample_rate, decoded.channels, decoded.flags) == (rate, 1, ())
    np.testing.assert_array_equal(decoded.waveform.samples, expected)
    assert decoded.waveform.samples.dtype == np.float32


@pytest.mark.parametrize("name", ENCODED)
def test_every_format_gives_the_whole_recording(name: str) -> None:
    container, codec, rate, bit_rate = ENCODED[name]
    decoded = decode(encoded(container, codec, rate, bit_rate))
    # Bare AAC, MP2 and AMR cannot say how much of their last frame is padding.
    padding = {"aac": 0.12, "amr": 0.03, "mp2": 0.03}.get(name, 1e-4)
    error = 0.005 if name == "wma" else 1e-4
    assert -error <= decoded.waveform.duration_s - 2.0 <= padding
    assert (decoded.sample_rate, decoded.channels, decoded.flags) == (rate, 1, ())
    assert looks_like_audio(encoded(container, codec, rate, bit_rate)[:64])


@pytest.mark.parametrize("name", ["alac", "flac", "mka", "m4a", "mp3", "mp3_mka", "opus", "webm"])
def test_sound_is_where_it_was_after_the_encoders_padding_is_cut(name: str) -> None:
    container, codec, rate, bit_rate = ENCODED[name]
    samples = decode(encoded(container, codec, rate, bit_rate)).waveform.samples
    original = speech(2.0, rate)[0]
    size = 1 << 17
    spectrum = np.fft.rfft(samples, 2 * size) * np.conj(np.fft.rfft(original, 2 * size))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 2 * size - lag) <= 1


@pytest.mark.parametrize(
    ("changes", "flags", "gain"),
    [
        ({"right": -0.7}, ("antiphase",), 1.0),
        ({"right": 0.0}, ("one_channel",), 1.0),
        ({"right": 0.0, "offset": 0.02}, ("one_channel",), 1.0),
        ({"right": 0.0, "noise": 0.0003}, ("one_channel",), 1.0),
        ({"right": 1.0}, (), 1.0),
        ({"right": 0.5}, (), 0.75),
    ],
)
def test_mono_keeps_the_sound_when_channels_cancel_or_are_silent(
    changes: dict[str, float], flags: tuple[str, ...], gain: float
) -> None:
    left = speech()[0]
    noise = np.random.default_rng(0).normal(0, changes.get("noise", 0.0), len(left))
    right = changes["right"] * left + noise + changes.get("offset", 0.0)
    for pair in ([left, right], [right, left]):
        decoded = decode(sf_bytes("WAV", "PCM_16", np.stack(pair)))
        assert decoded.flags == flags
        assert decoded.channels == 2
        np.testing.assert_allclose(decoded.waveform.samples, gain * left, atol=1e-4)


def test_of_channels_that_are_equal_but_for_the_sign_the_first_is_kept() -> None:
    left = speech()[0]
    for first in (left, -left):
        decoded = decode(sf_bytes("WAV", "PCM_16", np.stack([first, -first])))
        assert decoded.flags == ("antiphase",)
        np.testing.assert_allclose(decoded.waveform.samples, first, atol=1e-4)


def test_two_speakers_in_two_channels_are_averaged() -> None:
    pair = np.concatenate([speech(seed=1), speech(seed=2)])
    decoded = decode(sf_bytes("FLAC", "PCM_16", pair))
    assert decoded.flags == ()
    np.testing.assert_allclose(decoded.waveform.samples, pair.mean(axis=0), atol=1e-4)


def test_silent_channels_of_many_do_not_make_the_mix_quieter() -> None:
    voices = np.concatenate([speech(seed=1), np.zeros((5, 32000)), speech(seed=2)])
    decoded = decode(sf_bytes("WAV", "PCM_24", voices))
    assert decoded.channels == 7
    expected = (voices[0] + voices[6]) / 2
    np.testing.assert_allclose(decoded.waveform.samples, expected, atol=1e-5)


def test_silence_stays_silence() -> None:
    decoded = decode(sf_bytes("FLAC", "PCM_16", np.zeros((2, 16000))))
    assert decoded.flags == ()
    assert not decoded.waveform.samples.any()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 8])
def test_any_rate_and_number_of_channels(rate: int, channels: int) -> None:
    data = sf_bytes("WAV", "PCM_16", speech(0.25, rate, 1).repeat(channels, 0), rate)
    decoded = decode(data)
    assert (decoded.sample_rate, decoded.channels) == (rate, channels)
    assert len(decoded.waveform.samples) == rate // 4
    assert abs(resample(decoded.waveform, 16000).duration_s - 0.25) < 1e-3


@pytest.mark.parametrize(
    ("kind", "channels"), [("CAF:ALAC_16", 8), *(("OGG:VORBIS", count) for count in (7, 8, 9, 24))]
)
def test_channels_in_planes_of_their_own_are_read_however_many(kind: str, channels: int) -> None:
    container, _, subtype = kind.partition(":")
    sound = speech(0.25, 16000, 1)
    decoded = decode_isolated(sf_bytes(container, subtype, sound.repeat(channels, 0)))
    assert decoded.channels == channels
    np.testing.assert_allclose(decoded.waveform.samples, sound[0], atol=0.1)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("count", [1, 2, 800])
def test_very_short_recordings(container: str, count: int) -> None:
    decoded = decode(sf_bytes(container, "PCM_16", speech(1.0, 48000)[:, :count], 48000))
    assert len(decoded.waveform.samples) == count
    assert len(resample(decoded.waveform, 16000).samples) >= 1


def test_loud_floats_are_scaled_into_range_and_flagged() -> None:
    loud = speech() * 20
    decoded = decode(pcm_wav(loud))
    assert decoded.flags == ("scaled",)
    np.testing.assert_allclose(decoded.waveform.samples, loud[0] / np.abs(loud).max(), atol=1e-6)
    assert np.abs(decoded.waveform.samples).max() <= 1.0


def test_integers_stored_as_floats_are_scaled() -> None:
    decoded = decode(pcm_wav(np.round(speech() * 32767)))
    assert decoded.flags == ("scaled",)
    assert np.abs(decoded.waveform.samples).max() <= 1.0


def test_a_lossy_codecs_overshoot_is_scaled_without_a_flag() -> None:
    hot = speech(4.0, seed=3)
    hot *= 1.02 / np.abs(hot).max()
    decoded = decode(pcm_wav(hot))
    assert decoded.flags == ()
    assert np.abs(decoded.waveform.samples).max() == pytest.approx(1.0)


def test_clipped_sources_are_flagged() -> None:
    assert decode(sf_bytes("FLAC", "PCM_16", np.clip(speech() * 30, -1, 1))).flags == ("clipped",)
    peak = speech() / np.abs(speech()).max()  # touches full scale once, as normalised files do
    assert decode(sf_bytes("FLAC", "PCM_16", peak)).flags == ()


@pytest.mark.parametrize(
    ("joined", "seconds", "rate"),
    [
        (lambda: encoded(*ENCODED["mp3"]) + encoded(*ENCODED["mp3"]), 4.0, 16000),
        (lambda: encoded(*ENCODED["mp3"]) + encoded("mp3", "libmp3lame", 22050), 4.0, 16000),
        (lambda: encoded("mp3", "libmp3lame", 44100) + encoded(*ENCODED["mp3"]), 4.0, 44100),
        (lambda: encoded(*ENCODED["opus"]) + encoded(*ENCODED["opus"]), 4.0, 48000),
        (
            lambda: (
                sf_bytes("OGG", "VORBIS") + sf_bytes("OGG", "VORBIS", speech(1, 22050, 2), 22050)
            ),
            3.0,
            16000,
        ),
    ],
    ids=["mp3", "mp3-16-22", "mp3-44-16", "opus", "vorbis-16-22-stereo"],
)
def test_files_joined_end_to_end_are_decoded_in_full(joined, seconds: float, rate: int) -> None:  # type: ignore[no-untyped-def]
    decoded = decode(joined())
    assert decoded.sample_rate == rate
    assert decoded.waveform.duration_s == pytest.approx(seconds, abs=1e-3)


def test_sound_of_a_video_is_its_first_track() -> None:
    decoded = decode(mp4_with_video())
    assert decoded.waveform.duration_s == pytest.approx(1.0, abs=1e-3)
    assert np.abs(decoded.waveform.samples).max() > 0.2  # the second track is much quieter


def test_a_video_without_sound_is_no_audio() -> None:
    with pytest.raises(NotAudioError, match="no audio track"):
        decode(mp4_with_video(sound=False))


def test_cover_art_and_tags_do_no_harm() -> None:
    picture = (
        b"APIC" + (2000).to_bytes(4, "big") + bytes(2) + b"\x00image/png\x00\x03\x00" + bytes(1987)
    )
    size = len(picture)
    head = b"ID3\x03\x00\x00" + bytes(
        [size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]
    )
    tail = b"TAG" + b"a title".ljust(125, b"\x00")
    for name in ("mp3", "flac", "aac"):
        data = encoded(*ENCODED[name])
        plain = decode(data)
        tagged = decode(head + picture + data + tail)
        np.testing.assert_array_equal(tagged.waveform.samples, plain.waveform.samples)
        assert tagged.flags == ()


def test_content_decides_not_the_name(shared_data: Path) -> None:
    decoded = decode((shared_data / "oddities/corrupt/mp3_named.wav").read_bytes())
    assert decoded.waveform.duration_s == pytest.approx(2.365, abs=1e-3)


def test_an_mp4_with_its_index_first_is_the_same_recording() -> None:
    data = encoded(*ENCODED["m4a"])
    moved = remuxed(data, "ipod", {"movflags": "faststart"})
    assert moved.index(b"moov") < moved.index(b"mdat")
    np.testing.assert_array_equal(decode(moved).waveform.samples, decode(data).waveform.samples)


def test_recordings_decode_alike_in_many_threads() -> None:
    files = [encoded(*ENCODED[name]) for name in ("flac", "mp3", "opus", "m4a", "webm")] * 4
    alone = [decode(data).waveform.samples for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = [decoded.waveform.samples for decoded in pool.map(decode, files)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ffmpeg_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    broken = bytearray(encoded(*ENCODED["m4a"]))
    broken[3000:3400] = bytes(400)
    (tmp_path / "broken").write_bytes(broken)
    code = (
        "import sys, pathlib; from speechmill.audio import decode; from speechmill import errors\n"
        "try: decode(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "except errors.AudioError: print('failed')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "broken")], capture_output=True, check=True
    )
    assert run.stdout == b"failed\n"
    assert run.stderr == b""


@given(
    count=st.integers(1, 5000),
    source=st.sampled_from([8000, 16000, 22050, 44100, 48000, 192000]),
    target=st.sampled_from([8000, 16000, 24000, 48000]),
)
@settings(deadline=None, max_examples=40)
def test_resampling_keeps_duration_and_range(count: int, source: int, target: int) -> None:
    noise = np.random.default_rng(count).choice([-1.0, 1.0], count).astype(np.float32)
    waveform = Waveform(noise, source)
    out = resample(waveform, target)
    assert out.sample_rate == target
    assert len(out.samples) >= 1
    assert abs(len(out.samples) - count * target / source) <= 1
    assert np.abs(out.samples).max() <= 1.0
    assert out.samples.dtype == np.float32


def test_resampling_to_the_same_rate_is_the_same_waveform() -> None:
    waveform = Waveform(speech()[0], 16000)
    assert resample(waveform, 16000) is waveform


def test_resampling_keeps_a_tone() -> None:
    t = np.arange(48000) / 48000
    tone = Waveform(np.sin(2 * np.pi * 1000 * t).astype(np.float32) * 0.5, 48000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(
        resample(tone, 16000).samples[500:-500], expected[500:-500], atol=1e-3
    )


def test_senseless_sample_values_are_damage() -> None:
    with pytest.raises(DamagedError, match="no sound"):
        decode(pcm_wav(speech() * 1e30))


def test_extensions_are_lower_case_and_sorted() -> None:
    assert list(EXTENSIONS) == sorted({extension.lower() for extension in EXTENSIONS})
    assert {"flac", "wav", "mp3", "ogg", "opus", "m4a", "webm", "aiff", "wma"} <= set(EXTENSIONS)


def test_real_recordings_decode_to_the_length_that_is_known(shared_data: Path) -> None:
    lines = (shared_data / "manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    files = [entry for entry in entries if "oddities/corrupt" not in entry["path"]]
    for entry in files[::4]:
        decoded = decode((shared_data / entry["path"]).read_bytes())
        assert decoded.waveform.duration_s == pytest.approx(entry["duration_s"], abs=0.005), entry[
            "path"
        ]
        if "oddities" not in entry["path"]:
            assert decoded.flags == (), entry["path"]
