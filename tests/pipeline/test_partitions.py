"""Parts that are not one folder's, and builds that share the parts of one sink."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import speechmill
from speechmill.dataset.layout import partition_rule
from speechmill.dataset.reader import scan
from speechmill.errors import DatasetError, JobError
from speechmill.export.parquet import export_parquet
from speechmill.job import Job
from speechmill.records import Part
from speechmill.storage import open_store

TIMES = ["fetch_s", "decode_s", "transcribe_s", "tokenize_s"]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Twelve folders of two recordings, of which one in all is no audio."""
    noise = np.random.default_rng(1)
    for folder, clip in itertools.product(range(12), range(2)):
        path = tmp_path / "source" / f"p{folder:02d}" / f"{clip}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise.normal(0, 0.1, 4000), 16_000)
    (tmp_path / "source" / "p03" / "broken.wav").write_bytes(b"no audio at all, but text" * 9)
    return Job(source=str(tmp_path / "source"), sink=str(tmp_path / "sink"), transcriber="fake")


def rows(sink: str) -> pa.Table:
    table = speechmill.open_dataset(sink).to_table().drop_columns(TIMES)
    return table.sort_by([("file_name", "ascending")])


def directories(sink: str) -> set[str]:
    return {path.parent.name for path in Path(sink, "data").rglob("*.parquet")}


@pytest.mark.parametrize(
    ("partition_by", "expected"),
    [("none", {"folder=_all"}), ("hash:3", {f"folder=hash-{i}-of-3" for i in range(3)})],
)
def test_rows_are_the_same_in_coarser_parts(
    job: Job, partition_by: str, expected: set[str]
) -> None:
    speechmill.build(job)
    coarse = job.model_copy(update={"sink": f"{job.sink}-coarse", "partition_by": partition_by})
    report = speechmill.build(coarse)
    assert (report.rows, report.failed) == (24, 1)
    assert directories(coarse.sink) == expected
    assert (
        rows(coarse.sink).drop_columns(["recipe"]).equals(rows(job.sink).drop_columns(["recipe"]))
    )
    ((_, failures),) = [
        (part, table)
        for part, table in scan(open_store(coarse.sink), ["folder_name", "file_name"], "failures")
        if table.num_rows
    ]
    assert failures.to_pylist() == [{"folder_name": "p03", "file_name": "p03/broken.wav"}]
    assert speechmill.build(coarse).already_done == 24


def test_coarser_parts_are_not_exported_as_folders(job: Job, tmp_path: Path) -> None:
    speechmill.build(job.model_copy(update={"partition_by": "none"}))
    sink, out = open_store(job.sink), open_store(str(tmp_path / "plain"))
    with pytest.raises(JobError, match="repartition"):
        list(export_parquet(sink, out, "{folder_name}/data.parquet"))
    assert [e.rows for e in export_parquet(sink, out, "all.parquet")] == [24]


def test_what_a_sink_is_partitioned_by_cannot_change(job: Job) -> None:
    speechmill.build(job)
    with pytest.raises(DatasetError, match="partitioned by 'folder', not by 'none'"):
        speechmill.build(job.model_copy(update={"partition_by": "none"}))


@given(st.text(max_size=20), st.integers(1, 200))
def test_a_folder_lies_in_one_of_so_many_partitions(name: str, count: int) -> None:
    rule = partition_rule(f"hash:{count}")
    allowed = {f"hash-{i:0{len(str(count - 1))}d}-of-{count}" for i in range(count)}
    assert rule(name) in allowed
    assert rule(name) == rule(name)
    assert partition_rule("folder")(name) == name


@given(st.text(max_size=20), st.integers(1, 9), st.integers(1, 9))
def test_a_part_is_of_one_shard_index(name: str, parts: int, count: int) -> None:
    for index in range(parts):
        owners = [i for i in range(count) if Part(name, index, parts).belongs_to(i, count)]
        assert len(owners) == 1


def test_builds_of_all_indices_make_what_one_build_makes(job: Job) -> None:
    whole = job.model_copy(update={"sink": f"{job.sink}-whole"})
    speechmill.build(whole)
    done: list[int] = []
    for index in range(3):
        shared = job.model_copy(update={"shard_index": index, "shard_count": 3})
        plan = speechmill.plan(shared)
        assert plan.num_recordings + plan.elsewhere == 25 - sum(done)
        report = speechmill.build(shared)
        done.append(report.rows + report.failed)
    assert sum(done) == 25
    assert min(done) > 0
    assert rows(job.sink).equals(rows(whole.sink))
    paths = [
        sorted(p.relative_to(s) for p in Path(s, "data").rglob("*.parquet"))
        for s in (job.sink, whole.sink)
    ]
    assert paths[0] == paths[1]
    assert speechmill.build(job).already_done == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_index": 3, "shard_count": 3}, "counts from 0"),
        ({"partition_by": "speaker"}, "folder, none, or hash:N"),
        ({"partition_by": "hash:0"}, "folder, none, or hash:N"),
    ],
)
def test_wrong_values_are_refused(job: Job, changes: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job(**{**job.model_dump(), **changes})
