"""Long recordings: held in temporary files, with the same values, flags and errors as others."""

from __future__ import annotations

import gc
import io
import mmap
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.audio import decode, resample, spilling
from speechmill.audio.formats.octets import Octets, SpanReader, only_zeros, starts_with
from speechmill.audio.spilling import Spool
from speechmill.errors import AudioError, DamagedError, StorageError
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

ROOT = Path(__file__).parents[2]
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
ID3 = b"ID3\x03\x00\x00\x00\x00\x07\x68" + bytes(1000)
PLAIN = [
    "WAV:PCM_U8", "WAV:PCM_24", "WAV:DOUBLE", "WAV:ULAW", "WAV:IMA_ADPCM", "WAV:GSM610",
    "WAVEX:PCM_16", "RF64:PCM_16", "W64:PCM_16", "W64:FLOAT", "AIFF:PCM_24", "AU:PCM_16",
    "CAF:PCM_16", "CAF:ALAC_16", "NIST:PCM_16", "FLAC:PCM_24", "OGG:VORBIS",
]  # fmt: skip


def _mapped(data: bytes) -> mmap.mmap:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _stereo(*channels: NDArray[np.floating[Any]]) -> bytes:
    return sf_bytes("WAV", "FLOAT", np.stack(channels))


@cache
def _voice(seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(speech(seed=seed)[0])


def _with_nan() -> bytes:
    samples = speech()
    samples[0, [5, 6, 20_000]] = [np.nan, np.inf, -np.inf]
    return pcm_wav(samples)


ODD: dict[str, Callable[[], bytes]] = {
    "one channel": lambda: _stereo(_voice(), 0 * _voice()),
    "antiphase": lambda: _stereo(_voice(), -_voice()),
    "two speakers": lambda: _stereo(_voice(1), _voice(2)),
    "three channels": lambda: _stereo(_voice(1), 0 * _voice(), _voice(2)),
    "clipped": lambda: sf_bytes("FLAC", "PCM_16", np.clip(speech() * 30, -1, 1)),
    "scaled": lambda: pcm_wav(speech() * 20),
    "overshoot": lambda: pcm_wav(speech() * (1.02 / np.abs(speech()).max())),
    "scaled one channel": lambda: _stereo(0 * _voice(), 20 * _voice()),
    "wild": lambda: pcm_wav(speech() * 1e30),
    "not finite": _with_nan,
    "same runs": lambda: encoded(*ENCODED["opus"]) + encoded(*ENCODED["opus"]),
    "faster run": lambda: encoded(*ENCODED["mp3"]) + encoded("mp3", "libmp3lame", 22050),
    "slower run": lambda: (
        encoded("mp3", "libmp3lame", 44100) + encoded(*ENCODED["mp3"]) + encoded(*ENCODED["mp3"])
    ),
    "stereo run": lambda: (
        sf_bytes("OGG", "VORBIS")
        + sf_bytes("OGG", "VORBIS", np.stack([_voice(1), -_voice(1)]), 22050)
    ),
    "video": mp4_with_video,
    "video without sound": lambda: mp4_with_video(sound=False),
    "faststart": lambda: remuxed(encoded(*ENCODED["m4a"]), "ipod", {"movflags": "faststart"}),
    "piped flac": lambda: encoded("flac", "flac", 16000, pipe=True),
    "piped webm": lambda: encoded("webm", "libopus", 48000, pipe=True),
    "zeros": lambda: bytes(70_000),
    "text": lambda: b"hello, this is a transcript\n" * 20,
}


@cache
def _file(name: str) -> bytes:
    if name in ODD:
        return ODD[name]()
    if name in ENCODED:
        return encoded(*ENCODED[name])
    container, _, subtype = name.partition(":")
    return sf_bytes(container, subtype)


def _outcome(data: Octets, *, keep_damaged: bool) -> tuple[Any, ...]:
    """All that comes of a recording, also resampled, as something that can be compared."""
    try:
        decoded = decode(data, keep_damaged=keep_damaged)
    except AudioError as error:
        return type(error), str(error)
    waveforms = [decoded.waveform, *(resample(decoded.waveform, rate) for rate in (8000, 24000))]
    values = [(w.sample_rate, w.samples.dtype, w.samples.tobytes()) for w in waveforms]
    return decoded.sample_rate, decoded.channels, decoded.flags, values


@pytest.mark.parametrize("name", [*ENCODED, *PLAIN, *ODD])
@pytest.mark.parametrize("keep_damaged", [False, True], ids=["", "keep"])
def test_long_recordings_give_what_short_ones_do(
    name: str, keep_damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rng = _file(name), random.Random(name)
    at = rng.randrange(len(whole))
    files = [
        whole,
        ID3 + whole,
        whole + bytes(5000),
        ID3 + whole[: rng.randrange(len(whole))],
        whole[:at] + rng.randbytes(200) + whole[at + 200 :],
    ]
    expected = [_outcome(data, keep_damaged=keep_damaged) for data in files]
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    monkeypatch.setattr(spilling, "PIECE_SAMPLES", 3333)
    for data, outcome in zip(files, expected, strict=True):
        assert _outcome(_mapped(data), keep_damaged=keep_damaged) == outcome


def test_only_long_waveforms_go_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _file("WAV:PCM_24")
    assert decode(data).waveform.samples.flags.writeable
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 31_999)
    long = decode(data).waveform
    assert not long.samples.flags.writeable
    assert not resample(long, 48000).samples.flags.writeable
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 32_000)
    assert decode(data).waveform.samples.flags.writeable


@given(
    count=st.integers(1, 30_000),
    piece=st.integers(1, 5000),
    source=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 192000]),
    target=st.sampled_from([8000, 16000, 24000, 44056, 48000]),
)
@settings(deadline=None, max_examples=60)
def test_resampling_piece_by_piece_gives_the_same_bits(
    count: int, piece: int, source: int, target: int
) -> None:
    noise = np.random.default_rng(count).normal(0, 0.5, count).astype(np.float32).clip(-1, 1)
    waveform = Waveform(noise, source)
    expected = resample(waveform, target).samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilling, "SPILL_SAMPLES", 0)
        patch.setattr(spilling, "PIECE_SAMPLES", max(piece, count // 300))
        found = resample(waveform, target).samples
    np.testing.assert_array_equal(found, expected)


@given(lengths=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(0, 400))
@settings(deadline=None)
def test_a_spool_gives_back_what_it_took(lengths: list[int], limit: int) -> None:
    blocks = [np.arange(n, dtype=np.float32) + 100 * i for i, n in enumerate(lengths)]
    spool = Spool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilling, "SPILL_SAMPLES", limit)
        for block in blocks:
            spool.add(np.repeat(block, 2)[::2])  # not contiguous
    joined = spool.join()
    np.testing.assert_array_equal(joined, np.concatenate([*blocks, np.zeros(0)]))
    assert joined.dtype == np.float32
    assert len(spool.join()) == 0


_READS = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 40)),
    st.tuples(st.sampled_from(["set", "end", "on"]), st.integers(-20, 40)),
)


@given(data=st.binary(min_size=1, max_size=60), cut=st.data(), steps=st.lists(_READS, max_size=12))
@settings(deadline=None)
def test_a_piece_of_a_file_reads_like_a_file(
    data: bytes, cut: st.DataObject, steps: list[tuple[str, int]]
) -> None:
    start = cut.draw(st.integers(0, len(data)))
    end = cut.draw(st.integers(start, len(data)))
    whole, piece = io.BytesIO(data[start:end]), SpanReader(_mapped(data), (start, end))
    for step, number in steps:
        if step == "read":
            assert piece.read(number) == whole.read(number)
        elif step != "set" or number >= 0:
            whence = {"set": io.SEEK_SET, "on": io.SEEK_CUR, "end": io.SEEK_END}[step]
            assert piece.seek(number, whence) == whole.seek(number, whence)
        assert piece.tell() == whole.tell()


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=4), st.integers(0, 25))
@settings(deadline=None)
def test_a_map_is_looked_at_like_bytes(data: bytes, prefix: bytes, at: int) -> None:
    for prefixes in (prefix, (b"\x00\x01", prefix)):
        expected = data[at:].startswith(prefixes)
        assert starts_with(_mapped(data), prefixes, at) == expected
        assert starts_with(data, prefixes, at) == expected
    assert only_zeros(_mapped(data)) == only_zeros(data) == (not any(data))


def _open_in(folder: Path) -> list[str]:
    """What this process has open or mapped of a folder."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    links += Path("/proc/self/maps").read_text().splitlines()
    return [line for line in links if f"{folder}/" in line]


@NEEDS_PROC
def test_the_temporary_file_has_no_name_and_goes_with_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    decoded = decode(_file("antiphase"))
    assert list(tmp_path.iterdir()) == []
    gc.collect()
    assert len(_open_in(tmp_path)) == 3  # the map, the descriptor that it has, and the file
    assert len(decoded.waveform.samples) == 32_000
    del decoded
    gc.collect()
    assert _open_in(tmp_path) == []
    with pytest.raises(DamagedError):
        decode(_file("not finite"))
    gc.collect()
    assert _open_in(tmp_path) == []


def test_without_a_temporary_folder_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    for name in ("flac", "WAV:PCM_24"):
        with pytest.raises(StorageError, match=r"gone.*No such file.*TMPDIR"):
            decode(_file(name))
    with pytest.raises(StorageError, match=r"gone.*No such file.*TMPDIR"):
        resample(Waveform(_voice(), 16000), 8000)


def test_without_room_for_the_file_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "long.flac").write_bytes(_file("flac"))
    code = (
        "import pathlib, resource, sys; from speechmill import errors\n"
        "from speechmill.audio import decode, spilling\n"
        "spilling.SPILL_SAMPLES = 1000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: decode(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "except errors.StorageError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "long.flac")],
        capture_output=True,
        check=True,
        text=True,
        # A coverage run's own file would not be let grow, either.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
    )
    assert "File too large" in run.stdout
    assert "TMPDIR" in run.stdout
    assert run.stderr == ""


def _write_long(path: Path, minutes: int, channels: int) -> None:
    """Noise with pauses, 16 bits at 16 kHz; of two channels, one is silent."""
    rng = np.random.default_rng(0)
    minute = np.zeros((16000 * 60, channels), np.int16)
    minute[: 16000 * 50, 0] = rng.normal(0, 3000, 16000 * 50)
    with soundfile.SoundFile(path, "w", 16000, channels, "PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)


def _grown_bytes(path: Path) -> tuple[int, int]:
    """Samples at 8 kHz, and how far memory grows when a file is fetched, decoded and resampled."""
    code = (
        "import pathlib, sys; from speechmill.audio import decode, resample\n"
        "from speechmill.storage import fetch, open_store\n"
        "from tests.support.memory import AnonymousPeak\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "store = open_store(str(path.parent))\n"
        "with AnonymousPeak() as peak:\n"
        "    fetched = fetch(store, path.name, path.stat().st_size)\n"
        "    waveform = resample(decode(fetched.data).waveform, 8000)\n"
        "print(len(waveform.samples), peak.grown_bytes)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        check=True,
        text=True,
        cwd=ROOT,
    )
    count, grown = map(int, run.stdout.split())
    return count, grown


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize(("suffix", "channels"), [("wav", 2), ("flac", 1)])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, suffix: str, channels: int) -> None:
    grown = []
    for minutes in (10, 60):
        path = tmp_path / f"{minutes}.{suffix}"
        _write_long(path, minutes, channels)
        count, grown_bytes = _grown_bytes(path)
        assert count == minutes * 60 * 8000
        grown.append(grown_bytes)
        path.unlink()
    assert grown[1] - grown[0] < 80_000_000  # the hour has 230 MB of samples
