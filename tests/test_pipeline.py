"""One shard, from recordings to rows: every recording becomes rows or one failure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from numpy.typing import NDArray

import speechmill
from speechmill import audio, builder, pipeline
from speechmill.dataset import commit as dataset_commit
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import AccessDeniedError, ModelError, NotFoundError, UnavailableError
from speechmill.job import Job
from speechmill.planner import Plan
from speechmill.records import Part, RecordingDone, Transcript
from speechmill.report import BuildReport
from speechmill.storage import Blob, Object, Store, open_store
from speechmill.storage.local import LocalStore
from speechmill.tools import open_tools
from speechmill.transcribers.fake import FakeTranscriber

numbers = itertools.count()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Three folders of four short recordings each."""
    noise = np.random.default_rng(1)
    for folder, clip in itertools.product(("p1", "p2", "p3"), range(4)):
        path = tmp_path / "source" / folder / f"{clip}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = noise.normal(0, 0.1, 4000 + 400 * clip).astype(np.float32)
        soundfile.write(path, samples, 16_000)
    return Job(
        source=str(tmp_path / "source"),
        sink=str(tmp_path / "sink"),
        transcriber="fake",
        batch_size=4,
        store_retry_s=0.5,
    )


def names(job: Job) -> list[str]:
    rows = speechmill.open_dataset(job.sink).to_table(columns=["file_name"])
    return list(rows["file_name"].to_pylist())


def failed(job: Job) -> dict[str, tuple[str, str]]:
    rows = failed_recordings(open_store(job.sink))
    assert len({r.file_name for r in rows}) == len(rows)
    return {r.file_name: (r.stage, r.error) for r in rows}


def build(job: Job) -> BuildReport:
    report = speechmill.build(job)
    assert len(names(job)) == len(set(names(job)))
    assert not set(names(job)) & set(failed(job))
    return report


def trouble_with(monkeypatch: pytest.MonkeyPatch, num_samples: int, error: Exception) -> None:
    """The transcriber raises when a waveform of this length is among its batch."""
    transcribe = FakeTranscriber.transcribe

    def rough(self: FakeTranscriber, waveforms: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        if any(len(w) == num_samples for w in waveforms):
            raise error
        return transcribe(self, waveforms)

    monkeypatch.setattr(FakeTranscriber, "transcribe", rough)


def test_a_report_accounts_for_every_recording(job: Job) -> None:
    report = build(job)
    assert (report.recordings, report.rows, report.failed) == (12, 12, 0)
    assert report.complete
    assert report.audio_s == pytest.approx(3 * sum(4000 + 400 * i for i in range(4)) / 16_000)
    assert 0 < report.seconds_p50 <= report.seconds_p95 * 1.01
    again = build(job)
    assert (again.recordings, again.already_done, again.complete) == (0, 12, True)


def test_a_recording_that_cannot_be_transcribed_does_not_take_its_batch_along(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble_with(monkeypatch, 4400, ValueError("odd waveform"))
    report = build(job)
    assert (report.rows, report.failed) == (9, 3)
    assert failed(job) == {f"p{i}/1.wav": ("transcribe", "ValueError") for i in (1, 2, 3)}
    monkeypatch.undo()
    report = build(job)  # it may have been the machine: tried again
    assert (report.rows, report.failed, failed(job)) == (3, 0, {})


def test_an_engine_that_cannot_run_the_model_ends_the_build(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeTranscriber, waveforms: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        raise ModelError("no kernel image is available")

    monkeypatch.setattr(FakeTranscriber, "transcribe", broken)
    with pytest.raises(ModelError, match="kernel image"):
        speechmill.build(job)
    assert failed(job) == {}


def test_a_tokenizer_that_fails_fails_that_recording(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_tools(job).tokenizers[0]
    encode = type(tokenizer).encode

    def rough(self: object, waveforms: Sequence[NDArray[np.float32]]) -> object:
        if len(waveforms[0]) == 4800:
            raise ArithmeticError("no")
        return encode(self, waveforms)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tokenizer), "encode", rough)
    assert build(job).failed == 3
    assert failed(job)["p1/2.wav"] == ("tokenize", "ArithmeticError")


def test_a_decoder_that_breaks_is_a_failure_like_any_other(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = audio.decode

    def rough(data: bytes, *, keep_damaged: bool = False) -> audio.Decoded:
        if len(data) == 4400 * 2 + 44:
            raise MemoryError("cannot hold it")
        return decode(data, keep_damaged=keep_damaged)

    monkeypatch.setattr(audio, "decode", rough)
    assert build(job).failed == 3
    assert failed(job)["p2/1.wav"] == ("decode", "MemoryError")


def rough_get(
    monkeypatch: pytest.MonkeyPatch, trouble: Callable[[LocalStore, str], Blob | None]
) -> None:
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, key: trouble(self, key) or get(self, key))


def test_a_recording_deleted_after_the_listing_is_gone_and_no_failure(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(store: LocalStore, key: str) -> None:
        if key == "p1/0.wav":
            raise NotFoundError(key)

    rough_get(monkeypatch, deleted)
    report = build(job)
    assert (report.rows, report.failed, report.gone) == (11, 0, 1)
    assert failed(job) == {}


def test_a_recording_that_may_not_be_read_is_a_fetch_failure_tried_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(store: LocalStore, key: str) -> None:
        if key == "p3/3.wav":
            raise AccessDeniedError(key)

    rough_get(monkeypatch, forbidden)
    assert build(job).failed == 1
    assert failed(job) == {"p3/3.wav": ("fetch", "AccessDeniedError")}
    monkeypatch.undo()
    assert build(job).rows == 1
    assert failed(job) == {}


def test_one_object_that_stays_unavailable_fails_while_the_store_answers(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: LocalStore, key: str) -> None:
        if key == "p1/1.wav":
            raise UnavailableError("500, again and again")

    rough_get(monkeypatch, broken)
    assert build(job).failed == 1
    assert failed(job)["p1/1.wav"][0] == "fetch"


def test_a_store_that_is_down_ends_the_build_without_failures(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = LocalStore.list
    fetched: list[str] = []

    def down(store: LocalStore, key: str) -> None:
        if key.endswith(".wav"):
            fetched.append(key)
            raise UnavailableError("connection refused")

    def list_while_up(self: LocalStore, prefix: str = "") -> Iterator[Object]:
        if fetched and not prefix:
            raise UnavailableError("connection refused")
        return listing(self, prefix)

    rough_get(monkeypatch, down)
    monkeypatch.setattr(LocalStore, "list", list_while_up)
    with pytest.raises(UnavailableError, match="refused"):
        speechmill.build(job)
    monkeypatch.undo()
    assert failed(job) == {}
    assert build(job).rows == 12


def test_a_recording_that_changes_between_listing_and_fetch_gets_the_row_of_what_was_fetched(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(job.source) / "p1" / "0.wav"

    def change(store: LocalStore, key: str) -> None:
        if key == "p1/0.wav":
            soundfile.write(path, np.zeros(8000, np.float32), 16_000)

    rough_get(monkeypatch, change)
    build(job)
    monkeypatch.undo()
    assert build(job).recordings == 0
    rows = speechmill.open_dataset(job.sink).to_table()
    row = next(r for r in rows.to_pylist() if r["file_name"] == "p1/0.wav")
    assert row["duration_s"] == 0.5
    assert row["transcription"] == ""
    assert row["source_etag"] == str(path.stat().st_mtime_ns)


def test_a_changed_recording_replaces_its_row_and_a_broken_one_takes_it_away(job: Job) -> None:
    build(job)
    path = Path(job.source) / "p1" / "0.wav"
    soundfile.write(path, np.full(1600, 0.1, np.float32), 16_000)
    report = build(job)
    assert (report.recordings, report.already_done) == (1, 11)
    path.write_bytes(b"RIFF")
    assert build(job).failed == 1
    assert "p1/0.wav" not in names(job)
    assert build(job).failed_before == 1


class Stopping:
    """Stops a build once some recordings are done."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def planned(self, plan: Plan) -> None:
        pass

    def progress(self, tally: object) -> None:
        pass

    def __call__(self) -> bool:
        return self.seen >= self.after

    def heard(self, done: RecordingDone) -> None:
        self.seen += 1


def test_a_stop_commits_what_is_in_hand_and_the_next_build_goes_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Stopping(after=4)
    run = pipeline.process_shard

    def heard(job: Job, shard: object, **options: object) -> object:
        on_done = options["on_done"]

        def both(done: RecordingDone) -> None:
            stopping.heard(done)
            on_done(done)  # type: ignore[operator]

        return run(job, shard, **{**options, "on_done": both})  # type: ignore[arg-type]

    monkeypatch.setattr("speechmill.runners.local.process_shard", heard)
    report = builder.build(job, stop=stopping)
    assert report.stopped
    assert not report.complete
    assert 4 <= report.rows < 12
    assert len(names(job)) == report.rows
    monkeypatch.undo()
    assert build(job).rows == 12 - report.rows


def test_slow_models_commit_within_a_part(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "COMMIT_EVERY_S", 0.0)
    seen: list[int] = []
    commit = dataset_commit.commit

    def counted(store: Store, part: Part, rows: pa.Table, *rest: object, **options: object) -> int:
        seen.append(rows.num_rows)
        return commit(store, part, rows, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "commit", counted)
    assert build(job).rows == 12
    assert len(seen) > 3


def test_rows_do_not_depend_on_batches_or_order(job: Job, tmp_path: Path) -> None:
    tables = []
    for batch_size, fetchers in ((1, 1), (5, 3), (12, 16)):
        one = job.model_copy(
            update={
                "sink": str(tmp_path / f"sink{batch_size}"),
                "batch_size": batch_size,
                "fetchers": fetchers,
            }
        )
        build(one)
        table = speechmill.open_dataset(one.sink).to_table()
        tables.append(
            table.drop_columns(["fetch_s", "decode_s", "transcribe_s", "tokenize_s"])
            .sort_by("file_name")
            .to_pylist()
        )
    assert tables[0] == tables[1] == tables[2]


def test_the_logs_of_a_run_tell_each_recording_and_the_totals(job: Job) -> None:
    (Path(job.source) / "p1" / "bad.wav").write_bytes(b"no sound")
    report = build(job)
    folder = Path(job.sink) / "_speechmill" / "runs" / report.run_id
    timing = (folder / "timing.log").read_text().splitlines()
    assert len(timing) == 13 + 2
    application = (folder / "application.log").read_text()
    assert "recording failed" in application
    assert "finished" in application
    assert (folder / "report.json").exists()
