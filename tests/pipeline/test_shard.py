"""One shard, from recordings to rows: every recording becomes rows or one failure."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import speechmill
from speechmill import audio, builder
from speechmill.dataset import commit as dataset_commit
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import (
    AccessDeniedError,
    DatasetError,
    ModelError,
    NotFoundError,
    RecipeChangedError,
    StorageError,
    UnavailableError,
)
from speechmill.job import Job
from speechmill.pipeline import pace
from speechmill.pipeline import shard as pipeline
from speechmill.pipeline.planner import Plan
from speechmill.pipeline.report import BuildReport
from speechmill.pipeline.resources import open_resources
from speechmill.records import (
    Failure,
    Part,
    Recording,
    RecordingDone,
    Speech,
    Transcript,
    printable,
)
from speechmill.storage import Blob, Object, Store, open_store
from speechmill.storage.local import LocalStore
from speechmill.transcribers.fake import FakeTranscriber
from tests.support.rows import rows

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
    table = speechmill.open_dataset(job.sink).to_table(columns=["file_name"])
    return list(table["file_name"].to_pylist())


def failed(job: Job) -> dict[str, tuple[str, str]]:
    found = failed_recordings(open_store(job.sink))
    assert len({r.file_name for r in found}) == len(found)
    return {r.file_name: (r.stage, r.error) for r in found}


def build(job: Job) -> BuildReport:
    report = speechmill.build(job)
    assert len(names(job)) == len(set(names(job)))
    assert not set(names(job)) & set(failed(job))
    return report


def trouble_with(monkeypatch: pytest.MonkeyPatch, num_samples: int, error: Exception) -> None:
    """The transcriber raises when a waveform of this length is among its batch."""
    transcribe = FakeTranscriber.transcribe

    def rough(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        if any(len(s.samples) == num_samples for s in speech):
            raise error
        return transcribe(self, speech)

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
    def broken(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        raise ModelError("no kernel image is available")

    monkeypatch.setattr(FakeTranscriber, "transcribe", broken)
    with pytest.raises(ModelError, match="kernel image"):
        speechmill.build(job)
    assert failed(job) == {}


def test_a_tokenizer_that_fails_fails_that_recording(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_resources(job).tokenizers[0]
    encode = type(tokenizer).encode

    def rough(self: object, waveforms: Sequence[NDArray[np.float32]]) -> object:
        if any(len(waveform) == 4800 for waveform in waveforms):
            raise ArithmeticError("no")
        return encode(self, waveforms)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tokenizer), "encode", rough)
    assert build(job).failed == 3
    assert failed(job)["p1/2.wav"] == ("tokenize", "ArithmeticError")


def test_a_decoder_that_breaks_is_a_failure_like_any_other(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = audio.decode_isolated

    def rough(data: bytes, **choices: Any) -> audio.Decoded:
        if len(data) == 4400 * 2 + 44:
            raise MemoryError("cannot hold it")
        return decode(data, **choices)

    monkeypatch.setattr(audio, "decode_isolated", rough)
    assert build(job).failed == 3
    assert failed(job)["p2/1.wav"] == ("decode", "MemoryError")


def test_no_room_for_temporary_files_says_nothing_about_the_recording(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(data: bytes, **_: Any) -> audio.Decoded:
        raise StorageError("no space left")

    monkeypatch.setattr(audio, "decode_isolated", full)
    assert build(job).failed == 12
    assert failed(job)["p1/0.wav"] == ("fetch", "StorageError")
    monkeypatch.undo()
    assert build(job).rows == 12  # tried again, unlike what could not be decoded


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

    def listed(self, count: int) -> None:
        pass

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
    monkeypatch.setattr(pace, "MAX_PIECES", 2)
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

    def counted(
        store: Store, part: Part, rows: pa.Table, *rest: object, **options: object
    ) -> dataset_commit.Committed:
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


def test_a_source_that_vanishes_is_an_error_and_not_a_million_deletions(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmounted(store: LocalStore, key: str) -> None:
        if key.endswith(".wav"):
            shutil.rmtree(job.source, ignore_errors=True)

    rough_get(monkeypatch, unmounted)
    with pytest.raises(UnavailableError, match="no longer there"):
        speechmill.build(job)


def test_a_broken_engine_ends_the_build_also_with_batches_of_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble_with(monkeypatch, 4800, ModelError("out of memory"))
    one = job.model_copy(update={"batch_size": 1, "sink": f"{job.sink}-1"})
    with pytest.raises(ModelError, match="out of memory"):  # three in a row, and none before
        speechmill.build(one.model_copy(update={"include": ("*/2.wav",)}))
    assert build(job).failed == 3  # it works for others: these three are to blame


def test_what_is_done_is_committed_when_the_source_goes_down(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = LocalStore.list
    down: list[str] = []

    def trouble(store: LocalStore, key: str) -> None:
        if key.endswith("0.wav"):  # the shortest, so the last ones
            down.append(key)
            raise UnavailableError("connection refused")

    def list_while_up(self: LocalStore, prefix: str = "") -> Iterator[Object]:
        if down and not prefix:
            raise UnavailableError("connection refused")
        return listing(self, prefix)

    rough_get(monkeypatch, trouble)
    monkeypatch.setattr(LocalStore, "list", list_while_up)
    with pytest.raises(UnavailableError):
        speechmill.build(job)
    monkeypatch.undo()
    assert len(names(job)) == 8


def test_the_order_of_tokenizers_is_part_of_the_recipe(job: Job) -> None:
    speechmill.build(job.model_copy(update={"tokenizer": ("mfcc", "fake")}))
    with pytest.raises(RecipeChangedError, match=r"tokenizers\.token\.name"):
        speechmill.build(job.model_copy(update={"tokenizer": ("fake", "mfcc")}))


def test_a_rebuild_cannot_change_the_type_of_a_token_column(job: Job) -> None:
    build(job)
    with pytest.raises(DatasetError, match="another sink"):
        speechmill.build(job.model_copy(update={"tokenizer": ("fake",), "rebuild": True}))
    report = speechmill.build(
        job.model_copy(update={"tokenizer": ("mfcc", "fake"), "rebuild": True})
    )
    assert report.rows == 12
    assert "token_fake" in speechmill.open_dataset(job.sink).schema.names


def test_keys_that_print_alike_are_still_two_recordings(job: Job) -> None:
    folder = Path(job.source) / "odd"
    folder.mkdir()
    samples = (Path(job.source) / "p1" / "0.wav").read_bytes()
    (folder / "\\xff.wav").write_bytes(samples)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.wav")).write_bytes(samples)
    (folder / "\\xfe.wav").write_bytes(b"junk")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.wav")).write_bytes(b"junk")
    report = build(job)
    assert (report.rows, report.failed) == (14, 2)
    again = build(job)
    assert (again.recordings, again.failed_before) == (0, 2)


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=2, max_size=6, unique=True))
def test_different_keys_have_different_names(keys: list[bytes]) -> None:
    keys += [b"\\" + k for k in keys] + [b"\\x" + k for k in keys]
    decoded = {k.decode("utf-8", "surrogateescape") for k in keys}
    assert len({printable(k) for k in decoded}) == len(decoded)


def test_a_late_row_of_an_older_version_leaves_the_newer_versions_failure(job: Job) -> None:
    sink, part = open_store(f"memory://late-{next(numbers)}"), Part("p1", 0, 1)
    older, newer = Recording("x", 1, "e1", 1), Recording("x", 1, "e2", 2)
    failure = Failure(newer, "p1", "decode", "DamagedError", "broken")
    for table, failures in ((rows([]), [failure]), (rows([older]), [])):
        dataset_commit.commit(
            sink, part, table, failures, recipe="r1", replaces={}, is_current=lambda: True
        )
    assert [f.file_name for f in failed_recordings(sink)] == ["x"]


def test_a_damaged_part_is_named_with_what_to_do(job: Job) -> None:
    build(job)
    part = next(Path(job.sink, "data").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="remove the file"):
        speechmill.build(job)
    part.unlink()
    assert build(job).rows == 4
