"""Tasks and reports as text: what goes to a worker and back is what it was."""

from __future__ import annotations

import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill import errors
from speechmill.errors import EngineError, MissingExtraError, SpeechmillError, WorkerDiedError
from speechmill.job import Job
from speechmill.records import Failure, Part, Recording, RecordingDone, Shard, ShardReport
from speechmill.runners.wire import (
    died_text,
    perform,
    report_from_text,
    task_from_text,
    task_to_text,
)
from speechmill.runners.work import Task

names = st.text()
# As stores name what is not UTF-8: any bytes, those that are none as surrogate escapes.
keys = st.binary(min_size=1).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
sizes = st.integers(0, 2**62)
seconds = st.floats(0, 1e9)
recordings = st.builds(Recording, keys, sizes, names, sizes, names)
parts = st.builds(Part, names, st.integers(0, 99), st.integers(1, 100))
shards = st.builds(
    Shard,
    sizes,
    st.lists(st.tuples(parts, st.lists(recordings, max_size=3).map(tuple)), max_size=3).map(tuple),
)
failures = st.builds(Failure, recordings, names, st.just("decode"), names, names)
dones = st.builds(
    RecordingDone,
    *(names, sizes, seconds, sizes, seconds, seconds, seconds, seconds),
    st.lists(names, max_size=2).map(tuple),
    st.none() | failures,
    st.booleans(),
)
reports = st.builds(
    ShardReport,
    *(sizes, st.lists(dones, max_size=3).map(tuple), seconds, seconds, sizes),
    st.dictionaries(names, st.lists(seconds, max_size=3).map(tuple), max_size=2),
    st.booleans(),
)
JOB = Job(
    source="s3://bucket/Zoë",
    sink="out",
    temperature=(0.0, 0.5),
    tokenizer_option={"mfcc": {"n_mfcc": 13}},
    worker_option={"spark.task.cpus": 2},
)


shard_parts = st.lists(
    st.tuples(parts, st.lists(recordings, max_size=3).map(tuple)), max_size=3
).map(tuple)


@given(sizes, shard_parts, shard_parts)
def test_a_shard_gives_back_what_it_was_made_of(
    index: int,
    some: tuple[tuple[Part, tuple[Recording, ...]], ...],
    others: tuple[tuple[Part, tuple[Recording, ...]], ...],
) -> None:
    shard = Shard(index, some)
    told = [r for _, recordings in some for r in recordings]
    assert (shard.index, shard.parts) == (index, some)
    assert (shard.num_recordings, shard.num_bytes) == (len(told), sum(r.size for r in told))
    assert (shard == Shard(index, others)) == (some == others)
    assert pickle.loads(pickle.dumps(shard)) == shard == Shard(index, shard.parts)
    assert hash(shard) == hash(Shard(index, shard.parts))


@given(shards, names, st.integers(0, 9), st.none() | st.integers(1, 64))
def test_a_task_arrives_as_it_was_sent(
    shard: Shard, recipe: str, attempt: int, cores: int | None
) -> None:
    task = Task(JOB, shard, recipe, attempt, cores)
    text = task_to_text(task)
    assert text.isascii()
    assert task_from_text(text) == task


@given(shards, reports)
def test_a_report_arrives_as_it_was_sent(shard: Shard, report: ShardReport) -> None:
    text = perform(task_to_text(Task(JOB, shard, "r")), lambda _: report)
    assert text.isascii()
    assert report_from_text(text) == report


ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, SpeechmillError) and error is not MissingExtraError
]


@pytest.mark.parametrize(
    "error",
    [*(kind("what, where, and what to do: Zoë") for kind in ERRORS), MissingExtraError("x", "y")],
    ids=lambda error: type(error).__name__,
)
def test_our_errors_arrive_as_themselves(error: SpeechmillError) -> None:
    def work(task: Task) -> ShardReport:
        raise error

    text = perform(task_to_text(Task(JOB, Shard(0, ()), "r")), work)
    with pytest.raises(type(error)) as caught:
        report_from_text(text)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_other_errors_become_one_line() -> None:
    def work(task: Task) -> ShardReport:
        raise ValueError("a\nb")

    with pytest.raises(EngineError, match=r"^a worker met .* ValueError: a b \(.*test_wire") as e:
        report_from_text(perform(task_to_text(Task(JOB, Shard(0, ()), "r")), work))
    assert "\n" not in str(e.value)


def test_memory_that_ends_is_a_worker_that_died() -> None:
    def work(task: Task) -> ShardReport:
        raise MemoryError

    with pytest.raises(WorkerDiedError, match="memory"):
        report_from_text(perform(task_to_text(Task(JOB, Shard(0, ()), "r")), work))
    with pytest.raises(WorkerDiedError, match="killed"):
        report_from_text(died_text("killed"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", '{"report": 1}', '{"error": "os", "args": []}', '{"error": "__all__"}',
     '{"error": "NoSuchError", "args": ["x"]}', '{"error": "annotations", "args": []}'],
)  # fmt: skip
def test_an_answer_that_is_none_is_an_error_of_the_engine(text: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        report_from_text(text)
