"""What one recording may cost a shard: room, sound, time; the others wait, and do not fail."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechmill
from speechmill.audio import spilling
from speechmill.dataset.summary import FailedRecording, failed_recordings
from speechmill.job import Job
from speechmill.storage import large, open_store
from tests.support.crafted_audio import silent_flac
from tests.support.room import limited_room

LENGTHS = (2000, 3000, 4000, 5000, 6000, 7000)  # samples


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Recordings, all of which are held in temporary files."""
    noise = np.random.default_rng(1)
    (tmp_path / "source" / "p0").mkdir(parents=True)
    for length in LENGTHS:
        path = tmp_path / "source" / "p0" / f"{length}.wav"
        soundfile.write(path, noise.normal(0, 0.1, length).astype(np.float32), 16_000)
    return Job(
        source=str(tmp_path / "source"),
        sink=str(tmp_path / "sink"),
        transcriber="fake",
        tokenizer="none",
        batch_size=2,
        store_retry_s=0.5,
    )


def failures(job: Job) -> dict[str, FailedRecording]:
    return {found.file_name: found for found in failed_recordings(open_store(job.sink))}


@pytest.mark.parametrize("room", [28_000, 40_000, 70_000])
@pytest.mark.timeout(60)
def test_recordings_that_find_no_room_wait_for_it(
    job: Job, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    limited_room(monkeypatch, room)
    report = speechmill.build(job)
    assert (report.rows, report.failed) == (6, 0)
    assert failures(job) == {}


@pytest.mark.parametrize("room", [57_000, 80_000])
@pytest.mark.timeout(60)
def test_recordings_whose_channels_are_split_wait_for_room_for_all_of_them(
    job: Job, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in Path(job.source).rglob("*.wav"):
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, np.stack([samples, samples[::-1]], axis=1), rate)
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    limited_room(monkeypatch, room)
    report = speechmill.build(job.model_copy(update={"channels": "split"}))
    assert (report.rows, report.failed) == (12, 0)
    assert failures(job) == {}


@pytest.mark.timeout(60)
def test_one_that_does_not_fit_at_all_fails_and_says_how_much_it_needs(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    limited_room(monkeypatch, 27_000)
    report = speechmill.build(job)
    assert (report.rows, report.failed) == (5, 1)
    failed = failures(job)
    assert {(f.stage, f.error) for f in failed.values()} == {("fetch", "NoRoomError")}
    assert set(failed) == {"p0/7000.wav"}
    for failure in failed.values():
        assert "needs 0.00 GB" in failure.message
        assert "0.00 GB are free" in failure.message
    monkeypatch.undo()
    report = speechmill.build(job)
    assert (report.rows, report.failed) == (1, 0)
    assert failures(job) == {}


@pytest.mark.timeout(60)
def test_large_files_that_find_no_room_wait_as_well(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", 1000)
    limited_room(monkeypatch, 15_000)
    report = speechmill.build(job)
    assert (report.rows, report.failed) == (6, 0)


@pytest.mark.timeout(60)
def test_two_builds_in_one_process_do_not_wait_for_each_other_for_ever(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    limited_room(monkeypatch, 50_000)
    jobs = [job.model_copy(update={"sink": str(tmp_path / f"sink{i}")}) for i in range(2)]
    reports = []

    def run(one: Job) -> None:
        reports.append(speechmill.build(one))

    threads = [threading.Thread(target=run, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.rows for report in reports] == [6, 6]


def test_a_bomb_fails_for_good_and_the_flag_lets_it_pass(job: Job) -> None:
    bomb = Path(job.source) / "p0" / "bomb.flac"
    bomb.write_bytes(silent_flac(10))  # 82 s
    tight = job.model_copy(update={"max_duration_s": 60.0})
    report = speechmill.build(tight)
    assert (report.rows, report.failed) == (6, 1)
    failure = failures(job)["p0/bomb.flac"]
    assert (failure.stage, failure.error) == ("decode", "LimitError")
    assert "max_duration_s" in failure.message
    assert "--max-duration-s" in failure.message
    assert speechmill.build(tight).recordings == 0  # it is not tried again
    report = speechmill.build(job.model_copy(update={"retry_failed": True}))
    assert (report.failed, failures(job)) == (0, {})
    table = speechmill.open_dataset(job.sink).to_table(columns=["recipe"])
    assert len(set(table["recipe"].to_pylist())) == 1


def test_the_other_limits_are_options_of_the_job(job: Job) -> None:
    tight = Job(**{**job.model_dump(), "decode_limit": ["channels=0.5"]})
    assert speechmill.build(tight).failed == 6
    assert "--decode-limit channels=" in failures(job)["p0/2000.wav"].message
    for wrong in (["chanels=3"], ["load=0"], ["ratio=inf"], ["ratio"]):
        with pytest.raises(speechmill.errors.JobError, match="decode_limit"):
            Job(source="a", sink="b", decode_limit=wrong)
