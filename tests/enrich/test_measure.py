"""``measure``: every row gets the values of its own audio, whatever happens between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import speechmill
from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import ADDING
from speechmill.dataset.measured import described_measures, read_measures
from speechmill.dataset.reader import list_parts
from speechmill.dataset.state import current_recipe
from speechmill.enrich.add import Elsewhere, EnrichReport, add_tokens
from speechmill.enrich.add import measure as measure_store
from speechmill.enrich.shards import Enrichment
from speechmill.errors import DatasetError, JobError
from speechmill.measures.base import RowToMeasure
from speechmill.measures.fake import FakeMeasure
from speechmill.measures.level import LevelMeasure
from speechmill.pipeline.intake import ReadyRecording, fetch_into
from speechmill.records import Waveform
from speechmill.storage import Fetched, Store, open_store
from tests.enrich.test_add import Killed, Mortal
from tests.support import corpus
from tests.support.harness import TIMINGS

# The thread that writes the last words of a log dies with its store.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

NAMES = [f"p{i % 3}/{i:02d}.wav" for i in range(9)]
LEVEL = [field.name for field in LevelMeasure.fields]
FAKE = [field.name for field in FakeMeasure.fields]
SOME_WITHOUT = 3
DEMO = Path(__file__).parents[2] / "examples" / "corpus"


@pytest.fixture
def source(tmp_path: Path) -> str:
    files = {name: corpus.wav(i, seconds_of(name)) for i, name in enumerate(NAMES)}
    return corpus.write(tmp_path / "corpus", files)


def seconds_of(name: str) -> float:
    return 0.3 + 0.05 * NAMES.index(name)


def built(source: str, sink: Path, **options: Any) -> str:
    corpus.build(source, str(sink), part_minutes=0.02, **options)
    return str(sink)


def measure(sink: str, *names: str, **options: Any) -> EnrichReport:
    return measure_store(open_store(sink), names, **options)


def rows(sink: str, *columns: str) -> pa.Table:
    """The rows without their timings, in order."""
    table = speechmill.open_dataset(sink).to_table().drop_columns(list(TIMINGS))
    table = table.sort_by([("file_name", "ascending"), ("start_s", "ascending")])
    return table.select(["file_name", "start_s", *columns]) if columns else table


def nulls(sink: str, column: str) -> list[str]:
    table = rows(sink, column)
    return list(table.filter(pc.is_null(table[column]))["file_name"].to_pylist())


def leftovers(sink: str) -> list[str]:
    return [o.key for o in open_store(sink).list(ADDING)]


def state(sink: str) -> dict[str, str]:
    return {o.key: o.etag for o in open_store(sink).list("data")}


def share(sink: str, index: int, count: int) -> Elsewhere:
    job = Enrichment(source=sink, sink=sink, shard_index=index, shard_count=count)
    return Elsewhere(job)


# What it does.


def test_every_row_has_the_values_of_its_own_audio_and_nothing_else_changes(
    source: str, tmp_path: Path
) -> None:
    sink = built(source, tmp_path / "out")
    before, recipe = rows(sink), current_recipe(open_store(sink))
    report = measure(sink, "level")
    assert (report.rows, report.complete, report.lost) == (len(NAMES), True, {})
    after = rows(sink)
    assert after.select(before.column_names).equals(before)
    assert current_recipe(open_store(sink)) == recipe
    for row in after.to_pylist():
        number = NAMES.index(row["file_name"])
        samples = (corpus.samples(number, seconds_of(row["file_name"])) / 32_768).astype(np.float32)
        (expected,) = LevelMeasure().measure([RowToMeasure(Waveform(samples, 16_000))])
        assert [row[name] for name in LEVEL] == list(expected)
    for part in list_parts(open_store(sink)):
        table = read_part(part.key, open_store(sink).get(part.key).data)
        assert described_measures(table.schema)["level"]["columns"] == LEVEL
    assert leftovers(sink) == []
    assert corpus.build(source, sink).recordings == 0
    done = state(sink)
    again = measure(sink, "level")
    assert (again.rows, again.already, again.complete) == (0, len(NAMES), True)
    assert state(sink) == done


def test_two_measures_fetch_each_recording_once(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    fetched: Counter[str] = Counter()

    def counted(ready: ReadyRecording, store: Store) -> Fetched | None:
        fetched[ready.recording.file_name] += 1
        return fetch_into(ready, store)

    monkeypatch.setattr("speechmill.enrich.audio.fetch_into", counted)
    assert measure(sink, "level", "fake").complete
    assert fetched == dict.fromkeys(NAMES, 1)
    assert not [column for column in (*LEVEL, *FAKE) if nulls(sink, column)]
    texts = rows(sink, "transcription", "fake_characters").to_pylist()
    assert [row["fake_characters"] for row in texts] == [len(r["transcription"]) for r in texts]


def test_one_measure_that_is_there_and_one_that_is_not_make_the_second_alone(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "level")
    monkeypatch.setattr(LevelMeasure, "measure", None)  # it would fail
    assert measure(sink, "level", "fake").complete
    assert nulls(sink, "fake_score") == []


def test_what_cannot_be_done_is_said(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    with pytest.raises(JobError, match="no measure 'levle'; did you mean 'level'"):
        measure(sink, "levle")
    with pytest.raises(DatasetError, match="there is no dataset"):
        measure(str(tmp_path / "nothing"), "level")
    other = corpus.write(tmp_path / "other", {"p0/else.wav": corpus.wav(1)})
    before = rows(sink)
    with pytest.raises(DatasetError, match=r"level \(9 gone\).*nothing was changed.*--source"):
        measure(sink, "level", source_url=other)
    assert rows(sink).equals(before)


# Cut short.


@pytest.mark.parametrize("after", [False, True])
def test_ended_at_any_write_it_goes_on_and_ends_as_undisturbed(
    source: str, tmp_path: Path, after: bool
) -> None:
    whole = built(source, tmp_path / "whole")
    measure(whole, "level", "fake")
    kinds: set[str] = set()
    at = 0
    while True:
        sink = built(source, tmp_path / f"killed {at}")
        store: Any = Mortal(open_store(sink), at, after=after)
        try:
            measure_store(store, ["level", "fake"])
        except Killed:
            pass
        else:
            break
        mixed = rows(sink)  # readable at every moment
        assert mixed["file_name"].to_pylist() == sorted(NAMES)
        merged = "peak_dbfs" in mixed.column_names and mixed["peak_dbfs"].null_count < len(NAMES)
        kinds.add("merging" if merged else "staging" if leftovers(sink) else "begun")
        assert measure(sink, "level", "fake").complete
        assert rows(sink).equals(rows(whole))
        assert leftovers(sink) == []
        at += 4
    assert at > 20
    assert kinds >= {"staging", "merging"}


def test_killed_on_a_folder_the_command_goes_on(source: str, tmp_path: Path) -> None:
    whole, sink = built(source, tmp_path / "whole"), built(source, tmp_path / "out")
    measure(whole, "level")
    staged = Path(sink) / "_speechmill" / "adding"
    command = [sys.executable, "-m", "speechmill", "measure", sink, "level"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if staged.exists() and any(staged.iterdir()):
            break
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert rows(sink).num_rows == len(NAMES)
    assert run(sink, "level")[0] == 0
    assert rows(sink).equals(rows(whole))
    assert leftovers(sink) == []


def test_asked_to_stop_it_keeps_what_is_made(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    report = measure(sink, "level", stop=lambda: True)
    assert report.stopped
    assert not report.complete
    assert measure(sink, "level").complete
    assert nulls(sink, "peak_dbfs") == []


def interrupted(sink: str, at: int, *names: str, remake: bool = False) -> None:
    store: Any = Mortal(open_store(sink), at, after=False)
    with pytest.raises(Killed):
        measure_store(store, names, remake=remake)


def test_a_sink_in_the_middle_is_read_and_exported(source: str, tmp_path: Path) -> None:
    """Some parts have the columns, others do not yet."""
    whole, sink = built(source, tmp_path / "whole"), built(source, tmp_path / "out")
    measure(whole, "level")
    interrupted(sink, _first_write_of_data(source, tmp_path) + 2, "level")
    table = rows(sink)
    missing = nulls(sink, "peak_dbfs")
    assert 0 < len(missing) < len(NAMES)
    there = pc.is_valid(table["peak_dbfs"])
    assert table.filter(there).equals(rows(whole).filter(there))
    out = tmp_path / "exported"
    export = [sys.executable, "-m", "speechmill", "export", "parquet", sink, str(out)]
    subprocess.run(export, check=True, capture_output=True)
    exported = pa.concat_tables(
        [pq.read_table(path) for path in sorted(out.rglob("*.parquet"))]
    ).sort_by("file_name")
    assert exported["peak_dbfs"].equals(table["peak_dbfs"])
    assert measure(sink, "level").complete
    assert rows(sink).equals(rows(whole))


def _first_write_of_data(source: str, tmp_path: Path) -> int:
    """How many writes there are before the first into a part."""
    sink = built(source, tmp_path / "counted")
    writes: list[str] = []

    class Noting:
        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def put(self, key: str, data: bytes, **options: Any) -> str:
            writes.append(key)
            return self._store.put(key, data, **options)

    store: Any = Noting(open_store(sink))
    measure_store(store, ["level"])
    return next(i for i, key in enumerate(writes) if key.startswith("data/"))


# Builds before, after and between.


def test_new_rows_and_those_of_a_rebuild_get_theirs_by_the_same_command(
    source: str, tmp_path: Path
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "level")
    first = rows(sink, *LEVEL)
    new = {"p0/new.wav": corpus.wav(40), "p9/other.wav": corpus.wav(41)}
    corpus.write(Path(source), new)
    corpus.build(source, sink)  # without --measure: it leaves what is there, and gives null
    assert nulls(sink, "rms_dbfs") == sorted(new)
    now = rows(sink, *LEVEL)
    assert now.filter(pc.is_valid(now["rms_dbfs"])).equals(first)
    assert measure(sink, "level").rows == len(new)
    assert nulls(sink, "rms_dbfs") == []
    corpus.build(source, sink, rebuild=True, keep_damaged=True)
    assert len(nulls(sink, "rms_dbfs")) == len(NAMES) + len(new)
    assert measure(sink, "level").rows == len(NAMES) + len(new)
    now = rows(sink, *LEVEL)
    assert now.filter(pc.is_in(now["file_name"], pa.array(NAMES))).equals(first)


def test_a_build_with_measures_gives_the_very_values_of_the_command(
    source: str, tmp_path: Path
) -> None:
    """Also for a recording that is cut into rows, and a measure that looks at the text."""
    soundfile = pytest.importorskip("soundfile")
    clips = [soundfile.read(path)[0] for path in sorted(DEMO.glob("p90[12]/*.flac"))]
    pause = np.zeros(24_000)
    long = np.concatenate([part for clip in clips for part in (clip, pause)])
    soundfile.write(Path(source) / "p0" / "long.flac", long, 48_000)
    at_once = built(source, tmp_path / "at once", measure=("level", "fake"))
    later = built(source, tmp_path / "later")
    assert measure(later, "level", "fake").complete
    expected, found = rows(at_once), rows(later)
    assert max(Counter(expected["file_name"].to_pylist()).values()) > 1
    assert expected.equals(found.select(expected.column_names))
    assert expected["fake_score"].null_count == expected["fake_characters"].null_count == 0
    assert expected.schema.equals(found.schema, check_metadata=True)
    assert current_recipe(open_store(at_once)) == current_recipe(open_store(later))
    assert measure(at_once, "level", "fake").already == expected.num_rows


def test_a_build_with_measures_into_parts_that_have_none_measures_its_own_rows(
    source: str, tmp_path: Path
) -> None:
    sink = str(tmp_path / "out")
    corpus.build(source, sink)
    corpus.write(Path(source), {"p0/new.wav": corpus.wav(40)})
    corpus.build(source, sink, measure=("level",))
    assert nulls(sink, "rms_dbfs") == sorted(NAMES)
    assert measure(sink, "level").rows == len(NAMES)
    assert nulls(sink, "rms_dbfs") == []


# Another version.


def test_another_version_is_refused_with_what_differs_and_remade_by_the_flag(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "fake", "level")
    before, done = rows(sink, *FAKE, *LEVEL), state(sink)
    _another_fake(monkeypatch)
    with pytest.raises(DatasetError, match=r"version: 1 → 2.*--remake"):
        measure(sink, "fake")
    with pytest.raises(DatasetError, match=r"version: 1 → 2.*--remake"):
        corpus.build(source, sink, measure=("fake",))
    assert state(sink) == done
    assert measure(sink, "fake", remake=True).rows == len(NAMES)
    assert rows(sink, *LEVEL).equals(before.select(["file_name", "start_s", *LEVEL]))
    assert set(rows(sink, "fake_characters")["fake_characters"].to_pylist()) == {-1}
    assert read_measures(open_store(sink))["fake"].version == 2
    again = measure(sink, "fake", remake=True)
    assert (again.rows, again.already) == (0, len(NAMES))


def _another_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(_: FakeMeasure, given: Any) -> list[tuple[Any, ...]]:
        return [(np.float32(0.5), -1) for _ in given]

    monkeypatch.setattr(FakeMeasure, "version", 2)
    monkeypatch.setattr(FakeMeasure, "measure", otherwise)


def test_a_remake_that_is_cut_short_anywhere_goes_on(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks = {at: built(source, tmp_path / f"at {at}") for at in (1, 3, 6, 9, 11, 13, 15)}
    for sink in sinks.values():
        measure(sink, "fake")
    _another_fake(monkeypatch)
    mixed = 0
    for at, sink in sinks.items():
        interrupted(sink, at, "fake", remake=True)
        mixed += len(set(rows(sink, "fake_characters")["fake_characters"].to_pylist()) | {-1}) > 1
        assert measure(sink, "fake", remake=True).complete
        assert set(rows(sink, "fake_characters")["fake_characters"].to_pylist()) == {-1}
        assert leftovers(sink) == []
        assert measure(sink, "fake").already == len(NAMES)
    assert mixed


def test_a_remake_leaves_no_value_of_before_where_it_can_make_none(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "fake")
    _another_fake(monkeypatch)
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    (moved / NAMES[0]).unlink()
    report = measure(sink, "fake", remake=True, source_url=str(moved))
    assert report.lost == {"gone": 1}
    table = rows(sink)
    found = dict(
        zip(table["file_name"].to_pylist(), table["fake_characters"].to_pylist(), strict=True)
    )
    assert found.pop(NAMES[0]) is None
    assert set(found.values()) == {-1}


def test_a_share_without_parts_has_nothing_to_do(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    shares = [share(sink, i, 40) for i in range(40)]
    reports = [add_tokens(open_store(sink), "mfcc", elsewhere=one) for one in shares]
    assert all(report.complete for report in reports)
    assert sum(report.rows for report in reports) == len(NAMES)


def test_a_row_without_any_value_is_named_and_not_tried_for_ever(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "level")
    monkeypatch.setattr(FakeMeasure, "measure", lambda _, given: [(None, None) for _ in given])
    with pytest.raises(DatasetError, match=r"fake \(9 failed\).*fake gave no value"):
        measure(sink, "fake")


def test_a_remake_with_columns_of_another_type_leaves_none_of_the_old(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "fake")
    fields = (pa.field("fake_score", pa.string()),)
    monkeypatch.setattr(FakeMeasure, "version", 2)
    monkeypatch.setattr(FakeMeasure, "fields", fields)
    monkeypatch.setattr(FakeMeasure, "measure", lambda _, given: [("x",) for _ in given])
    interrupted(sink, 12, "fake", remake=True)
    assert rows(sink).num_rows == len(NAMES)  # readable all the same
    assert measure(sink, "fake", remake=True).complete
    assert set(rows(sink)["fake_score"].to_pylist()) == {"x"}
    assert "fake_characters" not in rows(sink).column_names


# Beside tokens.


def test_tokens_and_measures_one_after_the_other(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    measure(sink, "level")
    add_tokens(open_store(sink), "mfcc")
    measure(sink, "fake")
    for column in (*LEVEL, *FAKE, "token", "token_mfcc"):
        assert nulls(sink, column) == [], column
    assert corpus.build(source, sink, tokenizer=("fake", "mfcc")).recordings == 0


@pytest.mark.parametrize("first", ["tokens", "measure"])
@pytest.mark.parametrize("at", [4, 8, 13, 16])
def test_one_that_is_cut_short_does_not_disturb_the_other(
    source: str, tmp_path: Path, first: str, at: int
) -> None:
    whole = built(source, tmp_path / "whole", tokenizer=("fake", "mfcc"), measure=("level",))
    sink = built(source, tmp_path / "out")

    def tokens(store: Any) -> EnrichReport:
        return add_tokens(store, "mfcc")

    def level(store: Any) -> EnrichReport:
        return measure_store(store, ["level"])

    begun, other = (tokens, level) if first == "tokens" else (level, tokens)
    with pytest.raises(Killed):
        begun(Mortal(open_store(sink), at, after=False))
    assert other(open_store(sink)).complete
    assert begun(open_store(sink)).complete
    expected = rows(whole)
    assert rows(sink).select(expected.column_names).equals(expected)
    assert leftovers(sink) == []


# Recordings that are not what they were, and rows that cannot be measured.


def test_gone_changed_and_failed_recordings_are_named_and_have_null(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = built(source, tmp_path / "out")
    gone, failed, changed = NAMES[0], NAMES[2], NAMES[4]
    (Path(source) / gone).unlink()
    corpus.write(Path(source), {changed: corpus.wav(77, 0.4)})
    whole = LevelMeasure.measure

    def picky(self: LevelMeasure, given: Any) -> Any:
        if any(len(row.waveform.samples) == round(16_000 * seconds_of(failed)) for row in given):
            raise DatasetError("this length is not liked")
        return whole(self, given)

    monkeypatch.setattr(LevelMeasure, "measure", picky)
    report = measure(sink, "level", "fake")
    assert report.lost == {"gone": 1, "changed": 1, "failed": 1}
    assert set(report.reasons) == {gone, failed, changed}
    assert "this length is not liked" in report.reasons[failed]
    assert not report.complete
    assert nulls(sink, "peak_dbfs") == sorted([gone, failed, changed])
    assert nulls(sink, "fake_score") == sorted([gone, changed])  # the other measure had it
    monkeypatch.undo()
    report = measure(sink, "level", "fake")
    assert (report.rows, report.lost) == (1, {"gone": 1, "changed": 1})
    assert nulls(sink, "peak_dbfs") == sorted([gone, changed])


def test_a_measure_that_fails_in_a_build_costs_no_row(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LevelMeasure.measure

    def picky(self: LevelMeasure, given: Any) -> Any:
        if any(len(row.waveform.samples) == round(16_000 * 0.4) for row in given):
            raise DatasetError("this length is not liked")
        return whole(self, given)

    monkeypatch.setattr(LevelMeasure, "measure", picky)
    sink = built(source, tmp_path / "out", measure=("level",))
    assert rows(sink).num_rows == len(NAMES)
    assert nulls(sink, "peak_dbfs") == [NAMES[2]]
    monkeypatch.undo()
    assert measure(sink, "level").rows == 1
    assert nulls(sink, "peak_dbfs") == []


# In shares.


def test_index_shards_together_measure_every_row_once(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    num_parts = len(list_parts(open_store(sink)))
    reports = [measure(sink, "level", elsewhere=share(sink, i, 2)) for i in range(2)]
    assert all(report.complete for report in reports)
    assert min(report.rows for report in reports) > 0
    assert sum(report.rows for report in reports) == len(NAMES)
    assert sum(report.parts for report in reports) == num_parts
    assert nulls(sink, "peak_dbfs") == []
    assert leftovers(sink) == []


def test_index_shards_together_add_tokens_to_every_row_once(source: str, tmp_path: Path) -> None:
    sink = built(source, tmp_path / "out")
    whole = built(source, tmp_path / "whole", tokenizer=("fake", "mfcc"))
    reports = [add_tokens(open_store(sink), "mfcc", elsewhere=share(sink, i, 2)) for i in range(2)]
    assert min(report.rows for report in reports) > 0
    assert sum(report.rows for report in reports) == len(NAMES)
    assert all(report.complete for report in reports)
    assert rows(sink).equals(rows(whole))
    assert corpus.build(source, sink, tokenizer=("fake", "mfcc")).recordings == 0


# As a user meets it.


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "speechmill", "measure", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_measures_every_row_and_says_whether_some_could_not_be(
    source: str, tmp_path: Path
) -> None:
    sink = built(source, tmp_path / "out")
    code, said = run(sink, "level")
    assert code == 0, said
    assert nulls(sink, "peak_dbfs") == []
    (Path(source) / NAMES[0]).unlink()
    code, said = run(sink, "level", "fake")
    assert code == SOME_WITHOUT, said
    assert "1 gone" in said
    assert NAMES[0] in said
    assert "Traceback" not in said
    code, said = run(sink)
    assert code != 0
    assert "measure list" in said
    code, said = run("list")
    assert code == 0
    assert "level" in said
    assert "peak_dbfs" in said
    code, said = run(sink, "levle")
    assert code != 0
    assert "did you mean 'level'" in said
