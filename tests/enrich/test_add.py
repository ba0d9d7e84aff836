"""``tokens add``: a column that comes later is the one that a build makes, whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import speechmill
from speechmill.dataset.commit import merge_rows, read_part
from speechmill.dataset.layout import ADDING
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.schema import (
    codes_to_array,
    described_tokenizers,
    row_schema,
    to_parquet,
    utterances_to_table,
    with_tokenizer,
)
from speechmill.dataset.state import current_recipe, read_recipe
from speechmill.enrich.add import EnrichReport, add_tokens
from speechmill.enrich.staging import (
    RowKey,
    Staging,
    row_keys,
    staged_table,
)
from speechmill.enrich.tokens import TokenAddition, staging_id
from speechmill.errors import DatasetError, JobError, RecipeChangedError
from speechmill.pipeline.tokenize import SampleCheck
from speechmill.records import Codes, Recording, key_of, printable
from speechmill.storage import Store, open_store
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.tokenizers.mfcc import MfccTokenizer
from tests.support import corpus
from tests.support.codec_checkpoints import write_codec
from tests.support.harness import (
    TIMINGS,
    Bucket,
    Build,
    Place,
    Poller,
    Watched,
    assert_same_dataset,
    fill_folder,
    recording,
)
from tests.support.harness import corpus as many_folders
from tests.support.rows import utterance
from tests.support.services import SeaweedFS

# The thread that writes the last words of a log dies with its store.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

DEMO = Path(__file__).parents[2] / "examples" / "corpus"
SOME_WITHOUT = 3
DEADLINE_S = 120.0
NAMES = [f"p{i % 3}/{i:02d}.wav" for i in range(9)]


def rows(sink: str) -> pa.Table:
    """The rows without their timings, in order."""
    table = speechmill.open_dataset(sink).to_table()
    order = [("file_name", "ascending"), ("start_s", "ascending")]
    return table.drop_columns(list(TIMINGS)).sort_by(order)


def built(tmp_path: Path, *tokenizers: str, name: str = "out", **options: Any) -> tuple[str, str]:
    """A small corpus and a dataset of it, in many parts."""
    source = str(tmp_path / "corpus")
    if not Path(source).exists():
        files = {name: corpus.wav(i, 0.3 + 0.05 * i) for i, name in enumerate(NAMES)}
        corpus.write(tmp_path / "corpus", files)
    sink = str(tmp_path / name)
    corpus.build(source, sink, tokenizer=tokenizers, part_minutes=0.02, **options)
    return source, sink


def add(sink: str, tokenizer: str, **options: Any) -> EnrichReport:
    return add_tokens(open_store(sink), tokenizer, **options)


def parts(sink: str) -> dict[str, pa.Table]:
    store = open_store(sink)
    return {p.key: read_part(p.key, store.get(p.key).data) for p in list_parts(store)}


def leftovers(store: Store) -> list[str]:
    return [o.key for o in store.list(ADDING)]


def again(source: str, sink: str, *tokenizers: str, **options: Any) -> int:
    """How many recordings a build still has to make."""
    return corpus.build(source, sink, tokenizer=tokenizers, **options).recordings


# The same as by a build.


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small codecs at 8 kHz, as ``--tokenizer`` takes them."""
    root = tmp_path_factory.mktemp("codecs")
    return {n: f"{n}:{write_codec(n, root / n)}" for n in ("encodec", "mimi")}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Speech at 48 kHz: short recordings, and one that is cut into rows."""
    soundfile = pytest.importorskip("soundfile")
    root = tmp_path_factory.mktemp("speech")
    pause = np.zeros(24_000)
    clips = [soundfile.read(path)[0] for path in sorted(DEMO.glob("p90[12]/*.flac"))]
    (root / "p1").mkdir()
    (root / "p2").mkdir()
    long = np.concatenate([part for clip in clips for part in (clip, pause)])
    soundfile.write(root / "p1" / "long.flac", long, 48_000)
    for i, clip in enumerate(clips[:3]):
        soundfile.write(root / "p2" / f"{i}.wav", clip, 48_000, "FLOAT")
    return str(root)


def test_what_is_added_equals_what_a_build_makes(
    speech: str, codecs: dict[str, str], tmp_path: Path
) -> None:
    """Features and codes, at other rates than the recordings', in rows that are spans."""
    at_once, later = str(tmp_path / "at once"), str(tmp_path / "later")
    all_three = ("mfcc", codecs["encodec"], codecs["mimi"])
    corpus.build(speech, at_once, tokenizer=all_three)
    corpus.build(speech, later, tokenizer=("mfcc",))
    before = parts(later)
    assert add(later, codecs["mimi"]).complete
    assert add(later, codecs["encodec"]).complete

    expected, found = rows(at_once), rows(later)
    assert max(np.unique(expected["file_name"], return_counts=True)[1]) > 1
    found = found.select(expected.column_names)  # in which order they came does not matter
    assert found.equals(expected)
    for column in ("token_encodec", "token_mimi"):
        values = found[column].combine_chunks().flatten().flatten()
        assert len(values.unique()) > 16  # it is not all one code
    schema = stored_schema(open_store(later))
    described = {d["column"]: d for d in described_tokenizers(schema)}
    assert described["token_mimi"]["spec"] == codecs["mimi"]
    of_build = described_tokenizers(stored_schema(open_store(at_once)))
    assert described == {d["column"]: d for d in of_build}
    # Nothing else is touched, timings among it.
    after = parts(later)
    assert after.keys() == before.keys()
    for key, table in before.items():
        names = [n for n in table.column_names if n != "recipe"]
        assert after[key].select(names).equals(table.select(names))
    assert again(speech, later, *all_three) == 0
    assert leftovers(open_store(later)) == []


@pytest.mark.parametrize("first", ["mfcc", "none"])
def test_a_dataset_with_other_tokens_or_none_gets_them_where_a_build_puts_them(
    first: str, tmp_path: Path
) -> None:
    source, later = built(tmp_path, first)
    both = ("fake",) if first == "none" else (first, "fake")
    _, at_once = built(tmp_path, *both, name="at once")
    report = add(later, "fake")
    assert (report.rows, report.complete) == (len(NAMES), True)
    assert rows(later).equals(rows(at_once))
    assert rows(later).schema.equals(rows(at_once).schema, check_metadata=True)
    assert current_recipe(open_store(later)) == current_recipe(open_store(at_once))
    assert again(source, later, *both) == 0


def test_adding_what_is_there_is_nothing_to_do_and_another_way_of_it_an_error(
    tmp_path: Path,
) -> None:
    _, sink = built(tmp_path, "fake", "mfcc")
    before = {o.key: o.etag for o in open_store(sink).list()}
    for name in ("fake", "mfcc"):
        report = add(sink, name)
        assert (report.rows, report.already, report.complete) == (0, len(NAMES), True)
    with pytest.raises(DatasetError, match="n_mfcc: 20 → 13"):
        add(sink, "mfcc", options={"n_mfcc": 13})
    assert {o.key: o.etag for o in open_store(sink).list()} == before


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    _, sink = built(tmp_path, "mfcc")
    with pytest.raises(DatasetError, match="there is no dataset"):
        add(str(tmp_path / "nothing"), "fake")
    with pytest.raises(JobError, match="no tokenizer 'fkae'"):
        add(sink, "fkae")
    _, judged = built(tmp_path, "fake", name="judged", round_trip=True)
    assert add(judged, "mfcc").complete  # it is no codec, so it is not judged
    recipe = read_recipe(open_store(judged), current_recipe(open_store(judged)) or "")
    assert recipe is not None
    assert "round_trip" in recipe.choices


# Recordings that are not what they were.


def test_gone_and_changed_recordings_get_none_and_the_next_build_makes_what_changed(
    tmp_path: Path,
) -> None:
    source, sink = built(tmp_path, "fake")
    gone, changed = NAMES[0], NAMES[4]
    (Path(source) / gone).unlink()
    corpus.write(Path(source), {changed: corpus.wav(77, 0.4)})
    report = add(sink, "mfcc")
    assert report.lost == {"gone": 1, "changed": 1}
    assert report.reasons.keys() == {gone, changed}
    assert not report.complete
    found = {r["file_name"]: r for r in rows(sink).to_pylist()}
    assert [n for n, r in found.items() if r["token_mfcc"] is None] == [gone, changed]
    assert found[gone]["token"] is not None
    old = {n: r["recipe"] for n, r in found.items() if n in (gone, changed)}
    assert set(old.values()) != {found[NAMES[1]]["recipe"]}
    assert again(source, sink, "fake", "mfcc") == 1  # the changed one
    final = {r["file_name"]: r for r in rows(sink).to_pylist()}
    assert final[changed]["token_mfcc"] is not None
    assert add(sink, "mfcc").lost == {"gone": 1}  # also when there is nothing else to do


def test_rows_that_wait_for_a_rebuild_are_left_to_it(tmp_path: Path) -> None:
    source, sink = built(tmp_path, "fake")
    kept = current_recipe(open_store(sink))
    corpus.build(source, sink, keep_damaged=True, rebuild=True, limit=4)
    report = add(sink, "mfcc")
    assert (report.rows, report.other, report.complete) == (4, len(NAMES) - 4, True)
    for row in rows(sink).to_pylist():
        assert (row["recipe"] == kept) == (row["token_mfcc"] is None)
    again(source, sink, "fake", "mfcc", keep_damaged=True)
    assert None not in rows(sink)["token_mfcc"].to_pylist()


def test_the_recipe_moves_before_the_first_part_gets_its_tokens(tmp_path: Path) -> None:
    """Or a build by the old one could take them for rows that it has to replace."""
    _, sink = built(tmp_path, "fake")
    store, seen = open_store(sink), []

    class Watching(_DyingAt):
        def put(self, key: str, data: bytes, **options: Any) -> str:
            if key.startswith("data/"):
                made = read_part(key, data)["recipe"].to_pylist()
                seen.append({current_recipe(store)} == set(made))
            return self._store.put(key, data, **options)

    assert add_tokens(Watching(store, ""), "mfcc").complete
    assert len(seen) > 1
    assert all(seen)


@pytest.mark.parametrize("partition_by", ["folder", "none"])
def test_what_could_not_be_decoded_before_is_not_tried_again_afterwards(
    tmp_path: Path, partition_by: str
) -> None:
    broken = {"p0/text.wav": b"This is no audio.", "p1/short.wav": corpus.wav(1)[:300]}
    corpus.write(tmp_path / "corpus", {n: corpus.wav(i) for i, n in enumerate(NAMES)} | broken)
    source, sink = built(tmp_path, "fake", partition_by=partition_by)
    before = Place(sink).failures()
    assert before.num_rows == len(broken)
    assert add(sink, "mfcc").complete
    assert again(source, sink, "fake", "mfcc", partition_by=partition_by) == 0
    after = Place(sink).failures()
    assert after.drop_columns(["recipe"]).equals(before.drop_columns(["recipe"]))
    assert set(after["recipe"].to_pylist()) == {current_recipe(open_store(sink))}


def test_a_source_that_is_not_the_one_changes_nothing(tmp_path: Path) -> None:
    _, sink = built(tmp_path, "fake")
    before = rows(sink)
    other = corpus.write(tmp_path / "other", {"p0/else.wav": corpus.wav(1)})
    with pytest.raises(DatasetError, match=r"9 gone.*nothing was changed.*--source"):
        add(sink, "mfcc", source_url=other)
    assert rows(sink).equals(before)
    assert set(before["recipe"].to_pylist()) == {current_recipe(open_store(sink))}


def test_a_source_that_has_moved_is_found_by_the_flag(tmp_path: Path) -> None:
    source, sink = built(tmp_path, "fake")
    Path(source).rename(tmp_path / "moved")
    with pytest.raises(speechmill.SpeechmillError, match="there is no folder"):
        add(sink, "mfcc")
    assert add(sink, "mfcc", source_url=str(tmp_path / "moved")).complete


def test_names_that_are_not_utf8_are_found_again(tmp_path: Path) -> None:
    names = [b"p1/caf\xe9.wav", rb"p1/a\x41.wav", rb"p1/back\slash.wav", "p1/Zoë.wav".encode()]
    for i, name in enumerate(names):
        path = tmp_path / "corpus" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(corpus.wav(i))
    source, sink = str(tmp_path / "corpus"), str(tmp_path / "out")
    corpus.build(source, sink)
    assert add(sink, "mfcc").complete
    assert again(source, sink, "fake", "mfcc") == 0
    for name in names:
        key = name.decode("utf-8", "surrogateescape")
        assert key_of(printable(key)) == key


def test_a_tokenizer_that_fails_on_a_row_leaves_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sink = built(tmp_path, "fake")
    whole = MfccTokenizer.encode

    def encode(self: MfccTokenizer, waveforms: Any) -> list[Codes]:
        if any(len(w) == round(16_000 * 0.5) for w in waveforms):
            raise JobError("this length is not liked")
        return whole(self, waveforms)

    monkeypatch.setattr(MfccTokenizer, "encode", encode)
    report = add(sink, "mfcc")
    assert report.lost == {"failed": 1}
    assert "this length is not liked" in next(iter(report.reasons.values()))
    monkeypatch.undo()
    assert add(sink, "mfcc").complete
    assert None not in rows(sink)["token_mfcc"].to_pylist()


# Cut short.


class Killed(BaseException):
    """The process ended here."""


class Mortal:
    """A store that dies before, or after, its put or delete number ``at``."""

    def __init__(self, store: Store, at: int, *, after: bool) -> None:
        self._store, self._at, self._after = store, at, after
        self._lock = threading.Lock()
        self.dead = False
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("put", "delete"):
            return lambda *a, **k: self._do(name, *a, **k)
        return getattr(self._store, name)

    def _do(self, name: str, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            if self.dead:
                raise Killed
            if self.count == self._at:
                self.dead = True
                if self._after:
                    getattr(self._store, name)(*arguments, **options)
                raise Killed
            self.count += 1
            return getattr(self._store, name)(*arguments, **options)


@pytest.mark.parametrize("after", [False, True])
def test_ended_at_any_write_it_goes_on_and_ends_as_undisturbed(tmp_path: Path, after: bool) -> None:
    source, whole = built(tmp_path, "fake", "mfcc", name="whole")
    whole_recipe = current_recipe(open_store(whole))
    kinds: set[str] = set()
    at = 0
    while True:
        _, sink = built(tmp_path, "fake", name=f"killed {at}")
        store = Mortal(open_store(sink), at, after=after)
        try:
            add_tokens(store, "mfcc")
        except Killed:
            pass
        else:
            break
        mixed = rows(sink)  # readable at every moment
        assert mixed["file_name"].to_pylist() == sorted(NAMES)
        moved = current_recipe(open_store(sink)) == whole_recipe
        kinds.add("merging" if moved else "staging" if leftovers(open_store(sink)) else "begun")
        assert add(sink, "mfcc").complete
        assert rows(sink).equals(rows(whole))
        assert leftovers(open_store(sink)) == []
        assert again(source, sink, "fake", "mfcc") == 0
        at += 5
    assert at > 20
    assert kinds >= {"staging", "merging"}


class Adding:
    """``speechmill tokens add`` in a process of its own."""

    def __init__(self, sink: Place, *options: str) -> None:
        endpoint = () if sink.endpoint_url is None else ("--endpoint-url", sink.endpoint_url)
        command = [sys.executable, "-m", "speechmill", "tokens", "add", sink.url]
        self.process = subprocess.Popen(
            [*command, "--tokenizer", "mfcc", *endpoint, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    def finish(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def bucket(object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(object_store, tmp_path_factory.mktemp("profile"))


@pytest.fixture
def proxy(
    bucket: Bucket, object_store: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    with Watched(object_store.endpoint_url) as running:
        yield running


@pytest.mark.slow
def test_killed_while_it_makes_and_while_it_merges_in_a_bucket(
    bucket: Bucket, proxy: Watched
) -> None:
    source = bucket.fill("adding", many_folders(5, 2))
    killed, whole = (bucket.place(f"s3://dst/adding/{n}") for n in ("killed", "whole"))
    options = {"endpoint_url": killed.endpoint_url, "part_minutes": 0.02}
    corpus.build(source.url, killed.url, **options)
    corpus.build(source.url, whole.url, tokenizer=("fake", "mfcc"), **options)
    through = replace(killed, endpoint_url=proxy.endpoint_url)
    ends = []
    with Poller(killed, pause_s=0.02) as poller:
        for sign, when, nth, number in [
            ("PUT .*/adding/", "before", 0, signal.SIGKILL),
            ("PUT .*/adding/", "after", 1, signal.SIGINT),
            ("PUT .*/source.json", "after", 0, signal.SIGKILL),
            ("PUT .*/data/", "before", 1, signal.SIGTERM),
            ("PUT .*/data/", "after", 1, signal.SIGKILL),
            ("DELETE .*/adding/", "after", 1, signal.SIGKILL),
        ]:
            adding = Adding(through)
            hits: list[str] = []
            _signal_at(proxy, adding, (sign, when, nth), number, hits)
            code, said = adding.finish()
            assert code in (-signal.SIGKILL, 130, 143), (said, sign)
            assert "Traceback" not in said
            ends += hits
        proxy.hear = lambda request, when: None
        code, said = Adding(through).finish()
    assert code == 0, said
    assert len(ends) == 6
    assert not poller.wrong
    assert len(poller.recipes) >= 2
    assert_same_dataset(killed, whole)
    assert leftovers(killed.store) == []
    assert again(source.url, killed.url, "fake", "mfcc", **options) == 0


def _signal_at(
    proxy: Watched,
    adding: Adding,
    moment: tuple[str, str, int],
    number: signal.Signals,
    hits: list[str],
) -> None:
    """Send it a signal at such a request, before the store hears of it or once it is done."""
    sign, when, left = moment

    def hear(request: str, now: str) -> None:
        nonlocal left
        if now == when and re.search(sign, request):
            left -= 1
            if left == -1:
                adding.process.send_signal(number)
                hits.append(sign)

    proxy.hear = hear


@pytest.mark.slow
def test_killed_on_a_folder(tmp_path: Path) -> None:
    source, whole = built(tmp_path, "fake", "mfcc", name="whole")
    _, sink = built(tmp_path, "fake")
    kills = 0
    for folder, count in (("adding", 1), ("recipes", 2)):  # it makes, it merges
        watched = Path(sink) / "_speechmill" / folder
        adding = Adding(Place(sink))
        deadline = time.monotonic() + DEADLINE_S
        while adding.process.poll() is None and time.monotonic() < deadline:
            if watched.exists() and len(list(watched.iterdir())) >= count:
                break
            time.sleep(0.001)
        adding.process.kill()
        code, said = adding.finish()
        assert code in (-signal.SIGKILL, 0), said
        kills += code != 0
    assert kills
    assert Adding(Place(sink)).finish()[0] == 0
    assert rows(sink).equals(rows(whole))
    assert again(source, sink, "fake", "mfcc") == 0


def test_asked_to_stop_it_keeps_what_is_made(tmp_path: Path) -> None:
    _, sink = built(tmp_path, "fake")
    before = rows(sink)
    report = add(sink, "mfcc", stop=lambda: True)
    assert report.stopped
    assert not report.complete
    assert rows(sink).equals(before)


def test_what_was_made_before_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sink = built(tmp_path, "fake")
    with pytest.raises(Killed):
        add_tokens(_DyingAt(open_store(sink), "source.json"), "mfcc")
    made = len(leftovers(open_store(sink)))
    assert made > 1
    monkeypatch.setattr(MfccTokenizer, "encode", None)  # it would fail
    report = add(sink, "mfcc")
    assert (report.rows, report.resumed, report.complete) == (0, len(NAMES), True)


class _DyingAt:
    """A store that dies when a certain object is put."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def put(self, key: str, data: bytes, **options: Any) -> str:
        if key.endswith(self._name):
            raise Killed
        return self._store.put(key, data, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_another_adding_waits_until_the_first_has_come_to_its_end(tmp_path: Path) -> None:
    _, sink = built(tmp_path, "none")
    store = Mortal(open_store(sink), 0, after=False)
    # Dies at the second part that is merged: what comes after source.json.
    store._at = _writes_until_moved(tmp_path) + 2
    with pytest.raises(Killed):
        add_tokens(store, "fake")
    assert leftovers(open_store(sink))
    with pytest.raises(DatasetError, match="'fake' have not come into all rows"):
        add(sink, "mfcc")
    assert add(sink, "fake").complete
    assert add(sink, "mfcc").complete


def _writes_until_moved(tmp_path: Path) -> int:
    _, sink = built(tmp_path, "none", name="counted")
    counted = Mortal(open_store(sink), 10**6, after=False)

    class Counting(_DyingAt):
        def __getattr__(self, name: str) -> Any:
            return getattr(counted, name)

        def put(self, key: str, data: bytes, **options: Any) -> str:
            if key.endswith("source.json"):
                raise Killed
            etag: str = counted.put(key, data, **options)
            return etag

    with pytest.raises(Killed):
        add_tokens(Counting(open_store(sink), "source.json"), "fake")
    return counted.count


# Others at the same time.


@pytest.mark.slow
def test_a_build_by_the_old_recipe_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "corpus", many_folders(5, 3))
    sink, whole = Place(str(tmp_path / "sink")), Place(str(tmp_path / "whole"))
    options = {"part_minutes": 0.02}
    corpus.build(source.url, sink.url, **options)
    for f in range(5):
        fill_folder(tmp_path / "corpus", {f"p{f:02d}/new.wav": recording(9_000 + f)})
    build = Build(source.url, sink.url, "--tokenizer", "fake", "--fetchers", "1", seconds=1.0)
    while "to do" not in build.said() and build.running:  # until it has planned
        build.finish_after(build.age_s + 0.01)
    first = add(sink.url, "mfcc")
    assert build.running
    assert build.finish().code == 0
    with pytest.raises(RecipeChangedError):
        corpus.build(source.url, sink.url, **options)
    last = add(sink.url, "mfcc")
    assert last.complete
    assert first.rows + last.rows == 5 * 4
    for place in (sink, whole):
        corpus.build(source.url, place.url, tokenizer=("fake", "mfcc"), **options)
    assert sink.names() == sorted(set(sink.names()))
    assert sink.dataset_rows().equals(whole.dataset_rows())


def test_rows_of_a_build_that_was_overtaken_keep_the_columns_it_does_not_know() -> None:
    fake, mfcc = column_of(FakeTokenizer()), column_of(MfccTokenizer())
    old, new = row_schema([fake]), row_schema([fake, mfcc])
    waveform = np.zeros(800, np.float32)
    codes = (*FakeTokenizer().encode([waveform]), *MfccTokenizer().encode([waveform]))

    def one(name: str, schema: pa.Schema, count: int, recipe: str) -> pa.Table:
        row = replace(utterance(Recording(name, 1, "a", 1)), codes=codes[:count])
        return utterances_to_table([row], schema, recipe)

    there, coming = one("a", new, 2, "new"), one("b", old, 1, "old")
    merged = merge_rows(there, coming, replaces={}, is_current=lambda: False)
    assert merged is not None
    assert merged.schema.equals(new)
    assert merged.slice(0, 1).equals(there)
    assert merged["token_mfcc"].is_valid().to_pylist() == [True, False]
    rebuilt = merge_rows(there, coming, replaces={}, is_current=lambda: True)
    assert rebuilt is not None
    assert rebuilt.schema.equals(old)


def test_a_recipe_that_moved_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    source, sink = built(tmp_path, "fake")
    store = open_store(sink)
    first = current_recipe(store)

    class Overtaken(_DyingAt):
        def put(self, key: str, data: bytes, **options: Any) -> str:
            if key.startswith(ADDING) and current_recipe(store) == first:
                corpus.build(source, sink, rebuild=True, keep_damaged=True)
            return self._store.put(key, data, **options)

    with pytest.raises(RecipeChangedError, match="run this one again"):
        add_tokens(Overtaken(store, ""), "mfcc")
    assert "token_mfcc" not in rows(sink).column_names
    assert add(sink, "mfcc").complete
    assert again(source, sink, "fake", "mfcc", keep_damaged=True) == 0


# A moment between.


@pytest.mark.parametrize("first", ["mfcc", "none"])
def test_readers_meet_null_where_a_part_has_no_tokens_yet(first: str, tmp_path: Path) -> None:
    _, sink = built(tmp_path, first)
    whole = rows(built(tmp_path, *(["fake"] if first == "none" else [first, "fake"]), name="w")[1])
    store, name = open_store(sink), "token" if first == "none" else "token_fake"
    with pytest.raises(Killed):
        add_tokens(_DyingAt(store, "source.json"), "fake")
    recipe = read_recipe(store, current_recipe(store) or "")
    assert recipe is not None
    tokenizer = FakeTokenizer()
    mine = {"name": "fake", **tokenizer.recipe}
    target = replace(
        recipe,
        choices={
            **recipe.choices,
            "tokenizers": {**recipe.choices["tokenizers"], name: mine},
        },
    )
    staging = Staging(store, staging_id(recipe.choices, mine))
    described, sample = column_of(tokenizer, "fake"), SampleCheck([tokenizer])
    addition = TokenAddition(tokenizer, described, name, recipe.id, target, staging, sample)
    for part in list_parts(store)[:2]:
        table = addition.put_into(
            read_part(part.key, store.get(part.key).data), staging.read(part.key)
        )
        assert table is not None
        store.put(part.key, to_parquet(table))
    mixed = rows(sink)
    given = mixed[name].is_valid().to_pylist()
    assert set(given) == {True, False}
    expected = whole.filter(pa.array(given)).drop_columns(["recipe"])
    assert mixed.filter(pa.array(given)).select(expected.column_names).equals(expected)
    assert add(sink, "fake").complete
    assert rows(sink).equals(whole)


def test_a_part_that_comes_late_without_the_column_does_not_hide_it(tmp_path: Path) -> None:
    _, sink = built(tmp_path, "fake")
    store = open_store(sink)
    late = list_parts(store)[0].key
    before = store.get(late).data
    add(sink, "mfcc")
    whole = rows(sink)
    store.put(late, before)
    there = rows(sink)["token_mfcc"].is_valid().to_pylist()
    assert set(there) == {True, False}
    assert add(sink, "mfcc").complete
    assert rows(sink).equals(whole)


def test_what_is_put_beside_the_data_twice_is_there_once() -> None:
    staging = Staging(open_store(corpus.memory()), "id")
    (codes,) = FakeTokenizer().encode([np.zeros(800, np.float32)])
    of_type = column_of(FakeTokenizer()).type
    column = codes_to_array([codes, codes], of_type)
    keys: list[RowKey] = [
        ("a", 1, "x", 0.0, 1.0, 0),
        ("a", 1, "x", 0.0, 1.0, 1),
        ("b", 1, "y", 0.0, 1.0, None),
    ]
    fields = [pa.field("token", of_type)]
    staging.add("data/p", staged_table(keys[:2], fields, [column], {}))
    staging.add("data/p", staged_table(keys[1:], fields, [column], {"sample_mismatch": [0.0]}))
    made = staging.read("data/p")
    assert made is not None
    assert row_keys(made) == keys
    assert staging.read("data/q") is None
    staging.clear("data/p")
    assert staging.keys() == []


def test_the_columns_are_those_of_a_build() -> None:
    fake, mfcc = column_of(FakeTokenizer(), "fake"), column_of(MfccTokenizer(), "mfcc")
    both, one = row_schema([fake, mfcc]), row_schema([fake])
    added = with_tokenizer(one, "token_mfcc", mfcc)
    assert added.equals(both, check_metadata=True)
    assert with_tokenizer(added, "token_mfcc", mfcc) is added
    from_none = with_tokenizer(row_schema([]), "token", fake)
    assert from_none.equals(one, check_metadata=True)


# As a user meets it.


def test_the_command_says_what_it_did_and_its_exit_code_whether_all_rows_have_tokens(
    tmp_path: Path,
) -> None:
    source, sink = built(tmp_path, "fake")
    (Path(source) / NAMES[0]).unlink()
    code, said = Adding(Place(sink)).finish()
    assert code == SOME_WITHOUT
    assert "to do: 9 rows" in said
    assert "1 gone" in said
    assert NAMES[0] in said
    code, said = Adding(Place(sink), "--tokenizer-option", "mfcc.n_mfcc=13").finish()
    assert code == 1
    assert "Traceback" not in said
    code, said = Adding(Place(sink), "--tokenizer-option", "fake.x=1").finish()
    assert code == 2
    assert "'fake' is not the tokenizer 'mfcc'" in said
