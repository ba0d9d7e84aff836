"""Planning: what is listed is accounted for once, what is done is left alone and forgotten."""

from __future__ import annotations

import contextlib
import hashlib
import tracemalloc
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speechmill
from speechmill.dataset.layout import data_key, read_layout
from speechmill.dataset.schema import to_parquet
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import DatasetError, JobError, RecipeChangedError, SourceChangedError
from speechmill.job import Job
from speechmill.pipeline import lookup, packing, planner
from speechmill.pipeline.cleanup import prune
from speechmill.pipeline.planner import make_plan
from speechmill.pipeline.selection import estimate_s
from speechmill.records import Part, Recording
from speechmill.storage import Object, Store, open_store
from tests.support.corpus import build, memory, plan, rows_of, wav, write
from tests.support.rows import rows
from tests.support.services import SeaweedFS

TWO = {"p1/a.wav": wav(1), "p1/b.wav": wav(2)}


class Lister:
    """A store that lists these objects, without a byte behind them."""

    url = "memory://listed"

    def __init__(self, objects: Any) -> None:
        self.objects = objects

    def list(self, prefix: str = "") -> Iterator[Object]:
        yield from self.objects()


def planned(made: speechmill.Plan) -> list[str]:
    return sorted(r.file_name for s in made.shards for _, rs in s.parts for r in rs)


def contents(url: str) -> dict[str, str]:
    return {o.key: o.etag for o in open_store(url).list()}


def failures_of(sink: str) -> list[str]:
    return [f.file_name for f in failed_recordings(open_store(sink))]


CHOICE = {"a/1.wav": b"x", "a/2.FLAC": b"x", "b/3.mp3": b"x", "b/4.txt": b"x", "b/5.tar.gz": b"x"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["a/1.wav", "a/2.FLAC", "b/3.mp3"]),
        ({"extension": ".wav"}, ["a/1.wav"]),
        ({"extension": ("MP3", "flac")}, ["a/2.FLAC", "b/3.mp3"]),
        ({"extension": "gz"}, ["b/5.tar.gz"]),
        ({"include": "a/*"}, ["a/1.wav", "a/2.FLAC"]),
        ({"include": ("a/1*", "b/*")}, ["a/1.wav", "b/3.mp3"]),
        ({"exclude": "*.mp3"}, ["a/1.wav", "a/2.FLAC"]),
        ({"include": "a/*", "exclude": "*1.wav"}, ["a/2.FLAC"]),
        ({"limit": 1}, ["a/1.wav"]),
    ],
)
def test_recordings_are_chosen(options: dict[str, Any], wanted: list[str]) -> None:
    made = plan(memory(CHOICE), memory(), **options)
    assert planned(made) == wanted
    assert made.listed == len(CHOICE) == len(wanted) + sum(made.left_out.values())


def test_files_without_extension_are_known_by_their_first_bytes() -> None:
    files = {"a/speech": wav(), "a/notes": b"some text", "a/empty": b"", "a/b.c/speech": wav(1)}
    made = plan(memory(files), memory())
    assert planned(made) == ["a/b.c/speech", "a/speech"]
    assert made.left_out == {"no extension, no audio": 2}


APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(100)


def test_apple_double_is_left_out_by_its_content_and_counted() -> None:
    """macOS writes one beside each file on a disk of another kind; its name ends alike."""
    files = {
        "a/1.wav": wav(),
        "a/._1.wav": APPLE_DOUBLE,
        "a/._speech": APPLE_DOUBLE,
        "._root.flac": APPLE_DOUBLE,
        "a/._real.wav": wav(1),
        "a/._bare": wav(2),
        "a/._broken.wav": b"neither one nor the other",
        "a/._empty.wav": b"",
        "a/1._x.wav": APPLE_DOUBLE,  # called as no AppleDouble file is: it has to fail
    }
    source, sink = memory(files), memory()
    made = plan(source, sink)
    assert made.left_out == {"AppleDouble": 3}
    taken = sorted(files.keys() - {"a/._1.wav", "a/._speech", "._root.flac"})
    assert planned(made) == taken
    assert plan(source, sink, extension="wav").left_out == {
        "AppleDouble": 1,
        "no extension": 2,
        ".flac": 1,
    }
    report = build(source, sink)
    assert (report.rows, report.failed) == (3, 3)
    (failed,) = [f for f in failed_recordings(open_store(sink)) if f.file_name == "a/1._x.wav"]
    assert "AppleDouble" in failed.message
    again = plan(source, sink)
    assert (planned(again), again.left_out) == ([], {"AppleDouble": 3})


keys = st.builds(
    lambda folder, name, end: f"{folder}/{name}{end}",
    st.sampled_from("abc"),
    st.text("xyz12", min_size=1, max_size=3),
    st.sampled_from([".wav", ".txt", "", ".bad.wav", ".mp3.bak"]),
)


@settings(max_examples=12, deadline=None)
@given(
    first=st.sets(keys, max_size=8),
    later=st.sets(keys, max_size=8),
    touched=st.sets(keys, max_size=4),
    limit=st.none() | st.integers(1, 3),
    exclude=st.sampled_from([(), ("a/*",), ("*x*",)]),
)
def test_every_listed_object_is_counted_exactly_once(
    first: set[str],
    later: set[str],
    touched: set[str],
    limit: int | None,
    exclude: tuple[str, ...],
) -> None:
    def content(key: str, seed: int) -> bytes:
        return b"no audio" if "bad" in key or key.endswith("1") else wav(seed, 0.02)

    source, sink = memory({"keep/me.wav": wav(seconds=0.02)}), memory()
    store = open_store(source)
    for key in first:
        store.put(key, content(key, 1))
    build(source, sink)
    for key in later | (touched & first):
        store.put(key, content(key, 2))
    made = plan(source, sink, limit=limit, exclude=(*exclude, "*never*"))
    to_do = made.new + made.changed + made.again
    assert made.listed == len({"keep/me.wav"} | first | later)
    assert made.listed == made.done + made.failed + to_do + sum(made.left_out.values())
    assert to_do == made.num_recordings == len(set(planned(made)))


def test_a_sink_inside_its_source_is_never_listed(tmp_path: Path) -> None:
    source = write(tmp_path, TWO)
    for sink in (f"{source}/p1/out", source):
        build(source, sink)
        made = plan(source, sink)
        assert (made.done, made.num_recordings) == (2, 0)
        assert not any("part-" in key or "_speechmill" in key for key in planned(made))
    assert build(source, source).listed == 2 + sum(
        1 for p in (tmp_path / "p1" / "out").rglob("*") if p.is_file()
    )


def test_a_source_where_the_dataset_itself_would_go_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"data/p1/a.wav": wav()})
    for source in (f"{tmp_path}/data", f"{tmp_path}/data/p1", str(tmp_path)):
        with pytest.raises(JobError, match="choose another sink"):
            plan(source, str(tmp_path))


def test_directories_of_one_name_are_noted(tmp_path: Path) -> None:
    source = write(tmp_path, {"x/p1/a.wav": b"1", "y/p1/a.wav": b"2", "y/p2/a.wav": b"3"})
    assert plan(source, memory()).same_name == {"p1": ("x/p1", "y/p1")}
    assert not plan(source, memory(), folder="path").same_name
    assert plan(source, memory(), folder="path").parts.keys() == {"x/p1", "y/p1", "y/p2"}


def make(recordings: list[tuple[str, int]], sink: str, **options: Any) -> speechmill.Plan:
    """Plan for a listing of (key, size)."""
    lister: Any = Lister(lambda: (Object(key, size, "tag", 0) for key, size in recordings))
    return make_plan(Job(source=lister.url, sink=sink, **options), lister, open_store(sink), "r")


MINUTE = 60 * 64_000  # bytes of WAV


def test_the_number_of_parts_comes_from_the_estimated_duration() -> None:
    listing = [(f"big/{i}.wav", MINUTE) for i in range(100)] + [("small/0.wav", MINUTE)]
    assert make(listing, memory(), part_minutes=10.0).parts == {"big": 10, "small": 1}
    assert make(listing, memory(), part_minutes=200.0).parts == {"big": 1, "small": 1}
    # However small the files are said to be, each is taken for a second.
    tiny = [(f"t/{i}.wav", 1) for i in range(600)]
    assert make(tiny, memory(), part_minutes=1.0).parts == {"t": 10}
    assert estimate_s(Recording("a.flac", 400_000, "", 0)) == 10.0


def test_a_big_folder_is_many_shards_and_small_folders_share_one() -> None:
    big = make([(f"big/{i}.wav", MINUTE) for i in range(200)], memory(), part_minutes=10.0)
    assert len(big.shards) > 10
    assert max(s.num_recordings for s in big.shards) < 50
    small = make([(f"{i}/0.wav", MINUTE // 6) for i in range(300)], memory(), part_minutes=10.0)
    assert 6 <= len(small.shards) <= 12
    assert max(len(s.parts) for s in small.shards) > 25
    for made in (big, small):
        assert [s.index for s in made.shards] == list(range(len(made.shards)))
        parts = Counter(part for s in made.shards for part, _ in s.parts)
        assert set(parts.values()) == {1}
        for shard in made.shards:
            for part, recordings in shard.parts:
                for r in recordings:
                    assert part == Part.of(part.folder_name, r.file_name, part.count)


def test_the_number_of_parts_is_kept_for_later_plans() -> None:
    source, sink = memory({f"p/{i}.wav": wav(i) for i in range(6)}), memory()
    build(source, sink, part_minutes=0.05)
    agreed = read_layout(open_store(sink)).folders
    assert agreed == {"p": 2}
    open_store(source).put("p/new.wav", wav(9))
    made = plan(source, sink, part_minutes=30.0)
    assert made.parts == agreed
    assert planned(made) == ["p/new.wav"]


def test_a_folder_beyond_the_limit_is_not_settled_yet() -> None:
    source, sink = memory({"a/1.wav": wav(), "b/1.wav": wav(1)}), memory()
    build(source, sink, limit=1)
    assert read_layout(open_store(sink)).folders == {"a": 1}


def test_planning_writes_nothing() -> None:
    source, sink = memory(TWO), memory()
    assert plan(source, sink).num_recordings == 2
    assert contents(sink) == {}
    build(source, sink)
    before = contents(sink)
    open_store(source).put("p9/new.wav", wav())
    assert plan(source, sink, prune=True, retry_failed=True).new == 1
    assert contents(sink) == before


def test_new_changed_done_and_failed_are_told_apart() -> None:
    bad = b"no audio at all"
    source, sink = memory({**TWO, "p1/bad.wav": bad, "p1/worse.wav": bad}), memory()
    report = build(source, sink)
    assert (report.rows, report.failed) == (2, 2)
    store = open_store(source)
    store.put("p1/b.wav", wav(3))
    store.put("p1/worse.wav", wav(4))
    store.put("p2/c.wav", wav(5))
    made = plan(source, sink)
    assert (made.done, made.changed, made.new, made.failed) == (1, 2, 1, 1)
    assert planned(made) == ["p1/b.wav", "p1/worse.wav", "p2/c.wav"]
    assert planned(plan(source, sink, retry_failed=True)) == sorted(["p1/bad.wav", *planned(made)])
    old = rows_of(sink)
    report = build(source, sink)
    assert (report.recordings, report.rows, report.failed, report.failed_before) == (3, 3, 0, 1)
    new = rows_of(sink)
    assert new.keys() == {"p1/a.wav", "p1/b.wav", "p1/worse.wav", "p2/c.wav"}
    assert new["p1/a.wav"] == old["p1/a.wav"]
    assert new["p1/b.wav"]["source_etag"] != old["p1/b.wav"]["source_etag"]
    assert failures_of(sink) == ["p1/bad.wav"]


def test_what_failed_is_tried_again_only_when_asked_and_attempts_are_counted() -> None:
    source, sink = memory({**TWO, "p1/bad.wav": b"no audio"}), memory()
    build(source, sink)
    report = build(source, sink)
    assert (report.recordings, report.failed_before) == (0, 1)
    report = build(source, sink, retry_failed=True)
    assert (report.recordings, report.failed) == (1, 1)
    (failed,) = failed_recordings(open_store(sink))
    assert (failed.stage, failed.attempts) == ("decode", 2)


def test_prune_removes_rows_and_failures_of_what_is_gone_and_no_others() -> None:
    source = memory({**TWO, "p2/c.wav": wav(3), "p2/bad.wav": b"no", "p2/bad2.wav": b"no"})
    sink = memory()
    build(source, sink)
    store = open_store(source)
    for key in ("p1/a.wav", "p2/c.wav", "p2/bad.wav"):
        store.delete(key)
    report = build(source, sink)
    assert report.pruned == 0
    assert len(rows_of(sink)) == 3
    # What is left out is still there: it keeps its row.
    report = build(source, sink, prune=True, exclude="*/b.wav")
    assert report.pruned == 3
    assert rows_of(sink).keys() == {"p1/b.wav"}
    assert failures_of(sink) == ["p2/bad2.wav"]


def test_prune_refuses_to_work_on_half_a_listing_or_on_none() -> None:
    source, sink = memory(TWO), memory()
    build(source, sink)
    with pytest.raises(JobError, match="--limit"):
        build(source, sink, prune=True, limit=1)
    for key in TWO:
        open_store(source).delete(key)
    with pytest.raises(DatasetError, match="no recordings found"):
        build(source, sink, prune=True)
    made = make([("p1/a.wav", 1)], memory())  # planned without --prune
    with pytest.raises(JobError, match="empty the sink"):
        prune(open_store(source), open_store(sink), made)
    assert len(rows_of(sink)) == 2


def test_prune_spares_what_lies_in_a_folder_that_cannot_be_looked_into() -> None:
    sink = memory()
    for name in ("shut", "open"):
        table = rows([Recording(f"{name}/a.wav", 1, "tag", 0)], recipe="r", folder_name=name)
        open_store(sink).put(data_key(Part(name, 0, 1)), to_parquet(table))
    lister: Any = Lister(lambda: [Object("shut", 0, "", 0), Object("x/b.wav", 1, "tag", 0)])
    job = Job(source=lister.url, sink=sink, prune=True)
    made = make_plan(job, lister, open_store(sink), "r")
    assert prune(open_store(memory()), open_store(sink), made) == 1
    keys = [o.key for o in open_store(sink).list("data")]
    left = {k: open_store(sink).get(k) for k in keys}
    assert [len(_names(blob.data)) for _, blob in sorted(left.items())] == [0, 1]


def _names(data: bytes) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: list[str] = pq.read_table(pa.BufferReader(data))["file_name"].to_pylist()
    return names


def test_another_source_is_an_error_unless_it_has_moved() -> None:
    source, moved, sink = memory(TWO), memory(TWO), memory()
    build(source, sink)
    before = contents(sink)
    with pytest.raises(SourceChangedError, match=f"{source}.*--source-moved"):
        build(moved, sink)
    assert contents(sink) == before
    build(moved, sink, source_moved=True)
    assert len(rows_of(sink)) == 2
    assert build(moved, sink).already_done == 2
    with pytest.raises(SourceChangedError):
        plan(source, sink)


def test_another_recipe_is_an_error_that_says_what_differs_and_rebuild_replaces_the_rows() -> None:
    source, sink = memory(TWO), memory()
    build(source, sink)
    old = rows_of(sink)
    with pytest.raises(RecipeChangedError) as caught:
        build(source, sink, language="de")
    assert 'transcriber.language: null → "de"' in str(caught.value)
    assert "--rebuild" in str(caught.value)
    assert rows_of(sink) == old
    report = build(source, sink, language="de", rebuild=True)
    assert report.rows == 2
    new = rows_of(sink)
    assert {r["language"] for r in new.values()} == {"de"}
    assert {r["recipe"] for r in new.values()} == {report.recipe}
    assert build(source, sink, language="de").already_done == 2
    with pytest.raises(RecipeChangedError):
        plan(source, sink)


def test_the_folder_rule_of_a_sink_cannot_change() -> None:
    source, sink = memory(TWO), memory()
    build(source, sink)
    for options in ({"folder": "path"}, {"folder": "path", "rebuild": True}):
        with pytest.raises(DatasetError, match="sorts recordings into folders by 'parent'"):
            build(source, sink, **options)


def test_a_source_with_nothing_to_do_in_it_is_an_error_that_counts_what_is_there() -> None:
    with pytest.raises(DatasetError, match="it is empty"):
        build(memory(), memory())
    with pytest.raises(DatasetError, match=r"of 2 files none was chosen \(2 \.txt\)"):
        build(memory({"a/1.txt": b"", "a/2.txt": b""}), memory())


ODD = [
    *("plain/a.wav", "two//slashes.wav", "dot/./a.wav", "dots/../a.wav", "tab\there/a b.wav"),
    *("Zoë/東 😀.wav", "per%cent/100%25.wav", "plus+/a+b.wav", "hash#/q?.wav", "quote'\"/<&>.wav"),
    *("a=b/folder=x.wav", "~/-.wav", "long/" + "x" * 900 + ".wav"),
]


def test_odd_keys_of_a_bucket_each_become_a_row_or_a_failure(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in object_store.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(variable, value)
    bucket = object_store.make_bucket(f"odd-{uuid.uuid4().hex[:8]}")
    client = object_store.client()
    for i, key in enumerate(ODD):
        with contextlib.suppress(botocore.exceptions.ClientError):  # not every server takes them
            client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=wav(i))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"))
    held = sorted(o["Key"] for page in pages for o in page.get("Contents", ()))
    assert len(held) >= len(ODD) - 3
    sink = str(tmp_path / "sink")
    report = build(bucket, sink, profile="r2")
    assert report.listed == len(held)
    assert sorted([*rows_of(sink), *failures_of(sink)]) == held
    assert report.rows >= len(held) - 2
    again = build(bucket, sink, profile="r2")
    assert again.already_done == report.rows
    for name, row in rows_of(sink).items():
        assert row["folder_name"] == [d for d in name.split("/")[:-1] if d][-1]


def listed_clips(count: int, folders: int) -> Iterator[Object]:
    """Clips as a bucket lists them: digests that share nothing, sizes and times that differ."""
    for i in range(count):
        folder = i * folders // count
        key = f"speakers/s{folder:05d}/s{folder:05d}_{i:07d}.flac"
        etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        yield Object(key, 80_000 + i * 7_919 % 160_000, etag, 1_750_000_000_000_000 + i * 310_007)


@pytest.mark.parametrize("folders", [1, 40])  # one that is packed twice, and many
def test_a_plan_holds_few_bytes_a_recording(folders: int) -> None:
    count = 20_000
    lister: Any = Lister(lambda: listed_clips(count, folders))
    sink = memory()
    job, store = Job(source=lister.url, sink=sink), open_store(sink)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make_plan(job, lister, store, "r")
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert made.num_recordings == count
    assert held < 80 * count


@pytest.mark.parametrize("by", ["folder", "hash:2"])
def test_what_is_packed_meanwhile_is_planned_as_what_is_not(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    files = {f"p{i % 3}/{i:02d}.wav": wav(i) for i in range(24)}
    files |= {"p2/bare": wav(31), "p2/README": b"no audio"}
    source, sink = memory(files), memory()
    build(source, sink, partition_by=by, limit=12)
    open_store(source).put("p0/00.wav", wav(99))  # changed
    whole = plan(source, sink, partition_by=by)
    monkeypatch.setattr(packing, "LOOSE", 3)
    monkeypatch.setattr(packing, "FEW", 2)
    monkeypatch.setattr(planner, "STRIDE", 3)
    monkeypatch.setattr(planner, "LOOK_UP", 5)
    monkeypatch.setattr(lookup, "LOOKED_UP", 2)
    packed = plan(source, sink, partition_by=by)
    assert packed == whole
    assert 0 < whole.done < whole.listed
    assert (whole.changed, whole.left_out["no extension, no audio"]) == (1, 1)


@pytest.mark.slow
def test_planning_holds_nothing_for_what_is_done() -> None:
    count, folders = 100_000, 40
    sink = memory()
    store: Store = open_store(sink)
    by_folder: defaultdict[str, list[Recording]] = defaultdict(list)
    for i in range(count):
        folder = f"speaker-{i % folders:03d}"
        by_folder[folder].append(Recording(f"{folder}/{i:08d}.flac", 50_000, f"tag-{i}", i))
    from speechmill.dataset.layout import agree_on_parts

    agree_on_parts(store, dict.fromkeys(by_folder, 1))
    for folder, recordings in by_folder.items():
        store.put(data_key(Part(folder, 0, 1)), to_parquet(rows(recordings, "r", folder)))
    del by_folder, recordings

    def listing() -> Iterator[Object]:
        for folder in range(folders):
            for i in range(folder, count, folders):
                key = f"speaker-{folder:03d}/{i:08d}.flac"
                yield Object(key, 50_000, f"tag-{i}", i)

    lister: Any = Lister(listing)
    job = Job(source=lister.url, sink=sink)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make_plan(job, lister, store, "r")
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (made.done, made.num_recordings) == (count, 0)
    assert after - before < 2e6
    # Those that are looked up at the same time, and the parts that they may be in: not all of them.
    assert peak - before < 30e6
