"""Decoding in a process of its own, and files that end it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechmill import machine
from speechmill.audio import (
    NO_LIMITS,
    Limits,
    decode,
    decode_isolated,
    decoder_process,
    isolated,
    spilling,
)
from speechmill.errors import (
    DamagedError,
    DecoderDiedError,
    EngineError,
    LimitError,
    NoRoomError,
    NotAudioError,
)
from speechmill.machine import FileMap
from tests.support.corpus import samples, wav
from tests.support.hostile_decoder import ENDLESS, ENDS, HUNGRY, SLEEPS, hostile_path
from tests.support.room import small_disk

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
CLIP = CORPUS / "p901" / "p901_001.flac"


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[isolated._Decoders]:
    """Fresh ones, to whose processes some files do what a fault in FFmpeg could."""
    monkeypatch.setenv("PYTHONPATH", hostile_path())
    decoders = isolated._Decoders()
    monkeypatch.setattr(isolated, "_decoders", decoders)
    yield decoders
    decoders.close()


@pytest.fixture(scope="module")
def long() -> FileMap:
    """Quarter of an hour, more than memory is to hold."""
    pcm = np.tile(samples(seconds=1.0), spilling.SPILL_SAMPLES // 16_000 + 1)
    with tempfile.TemporaryFile() as file:
        soundfile.write(file, pcm, 16_000, format="WAV")
        return FileMap(file.fileno())


def test_the_waveform_and_all_facts_are_those_of_decoding_here() -> None:
    data = CLIP.read_bytes()
    here, there = decode(data), decode_isolated(data)
    np.testing.assert_array_equal(here.waveform.samples, there.waveform.samples)
    assert there.waveform.samples.dtype == np.float32
    assert (here.waveform.sample_rate, here.sample_rate, here.channels, here.flags) == (
        there.waveform.sample_rate,
        there.sample_rate,
        there.channels,
        there.flags,
    )


def test_errors_are_those_of_decoding_here() -> None:
    with pytest.raises(NotAudioError, match="this is no audio but"):
        decode_isolated(b"<!doctype html><html>" * 100)
    with pytest.raises(DamagedError):
        decode_isolated(
            b"".join([CLIP.read_bytes()[:9000], bytes(2000), CLIP.read_bytes()[11000:]])
        )


def test_long_recordings_go_and_come_as_files(long: FileMap) -> None:
    decoded = decode_isolated(long)
    assert not decoded.waveform.samples.flags.writeable  # a map of a file; in memory it may be
    here = decode(long)
    np.testing.assert_array_equal(decoded.waveform.samples, here.waveform.samples)


@pytest.mark.timeout(60)
def test_two_decoders_do_not_promise_themselves_the_same_room(
    decoders: isolated._Decoders, long: FileMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * (spilling.SPILL_SAMPLES + 16_000)
    with small_disk(tmp_path / "disk", machine.SPARE_BYTES + needed * 3 // 2) as disk:
        monkeypatch.setenv("TMPDIR", str(disk.path))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode_isolated, [CLIP.read_bytes()] * 2))  # both are there
            both = [pool.submit(decode_isolated, long) for _ in range(2)]
            (error,) = (found for one in both if (found := one.exception()) is not None)
        assert isinstance(error, NoRoomError)
        del both


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_file_that_ends_its_decoder_is_a_failure_and_the_next_one_is_decoded(
    decoders: isolated._Decoders, number: signal.Signals
) -> None:
    with pytest.raises(DecoderDiedError, match=f"ended its decoder 2 times, by {number.name}"):
        decode_isolated(ENDS % number.value)
    assert decode_isolated(CLIP.read_bytes()).channels == 1


@pytest.mark.parametrize(("data", "patience"), [(ENDLESS, 10.0), (SLEEPS, 0.5)])
def test_a_file_that_its_decoder_never_ends_with_is_given_up(
    decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch, data: bytes, patience: float
) -> None:
    monkeypatch.setattr(isolated, "PATIENCE", patience)
    monkeypatch.setattr(isolated, "CPU_S", 1.0)
    with pytest.raises(DecoderDiedError, match="given up after 1 s of processor time"):
        decode_isolated(data)
    assert decode_isolated(CLIP.read_bytes()).channels == 1


def test_a_file_that_takes_all_memory_gets_no_more_than_a_limit(
    decoders: isolated._Decoders,
) -> None:
    with pytest.raises(MemoryError):
        decode_isolated(HUNGRY)
    assert decode_isolated(CLIP.read_bytes()).channels == 1


def test_a_request_that_is_given_up_midway_leaves_its_answer_to_no_other(
    decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode_isolated(CLIP.read_bytes()).waveform.samples

    def out_of_memory(channel: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "receive", out_of_memory)
        with pytest.raises(MemoryError):
            decode_isolated(wav())
    np.testing.assert_array_equal(decode_isolated(CLIP.read_bytes()).waveform.samples, expected)


def test_a_decoder_that_cannot_be_started_ends_the_job_and_fails_no_recording(
    decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(isolated, "START_PAUSES_S", (0.0,))
    with pytest.raises(EngineError, match="cannot be started: it ended by exit code 1"):
        decode_isolated(CLIP.read_bytes())


def test_decoders_that_died_idle_are_no_recordings_fault(decoders: isolated._Decoders) -> None:
    data = CLIP.read_bytes()
    for _ in range(4):
        assert decode_isolated(data).channels == 1
        for decoder in decoders._idle:
            decoder._process.kill()


def test_a_shortage_that_passes_fails_no_recording(
    decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, tries = subprocess.Popen, iter([True])

    def short(*arguments: Any, **options: Any) -> Any:
        if next(tries, False):
            raise OSError(errno.EAGAIN, "no process for now")
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", short)
    assert decode_isolated(CLIP.read_bytes()).channels == 1


def test_an_answer_that_was_broken_off_is_not_read_by_the_next_recording(
    decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    exactly, sizes = decoder_process._exactly, iter([True])

    def short(channel: Any, count: int) -> Any:
        if count > 10_000 and next(sizes, False):
            raise MemoryError
        return exactly(channel, count)

    data = CLIP.read_bytes()
    monkeypatch.setattr(decoder_process, "_exactly", short)
    with pytest.raises(MemoryError):
        decode_isolated(data)
    assert decode_isolated(data).channels == 1


def test_a_decoder_is_started_without_the_modules_of_the_working_directory(
    tmp_path: Path, decoders: isolated._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert decode_isolated(CLIP.read_bytes()).channels == 1


def test_a_process_that_was_forked_has_decoders_of_its_own(decoders: isolated._Decoders) -> None:
    expected = decode_isolated(CLIP.read_bytes()).waveform.samples
    child = os.fork()
    if not child:
        same = np.array_equal(decode_isolated(CLIP.read_bytes()).waveform.samples, expected)
        isolated._decoders.close()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(decode_isolated(CLIP.read_bytes()).waveform.samples, expected)


def test_decoders_end_with_the_process_that_they_work_for(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys, signal\n"
        "from speechmill.audio import decode_isolated, isolated\n"
        f"decode_isolated(pathlib.Path({str(CLIP)!r}).read_bytes())\n"
        "print(*(d._process.pid for d in isolated._decoders._idle), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(ended.stdout)}/fd").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(ended.stdout)}/cwd").exists()


def test_limits_hold_in_the_other_process(long: FileMap) -> None:
    with pytest.raises(LimitError, match="longer than 600 s"):
        decode_isolated(long, limits=Limits(max_duration_s=600))


def test_recordings_that_had_passed_have_no_limits() -> None:
    assert decode_isolated(CLIP.read_bytes(), limits=NO_LIMITS).channels == 1


def test_the_file_of_a_long_waveform_counts_as_held_until_it_is_gone(long: FileMap) -> None:
    gc.collect()
    before = len(machine._shares)
    decoded = decode_isolated(long)
    assert len(machine._shares) == before + 1
    del decoded
    gc.collect()
    assert len(machine._shares) == before


def test_no_file_stays_open(long: FileMap) -> None:
    decode_isolated(long)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        decode_isolated(long)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
