"""A disk that is full, and files that may not grow: a build says so, and the next one goes on."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest

from tests.support.chaos import Chaos
from tests.support.harness import Build, Command, Finished, Place, assert_same_dataset, corpus
from tests.support.harness import fill_folder as fill
from tests.support.room import small_disk

FILES = corpus(6, 2, broken=2)
DONE_WITH_FAILURES = 3
ROUNDS, MANY_ROUNDS = 1, 10_000
PAGE = 4096


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return fill(tmp_path / "corpus", FILES)


@pytest.fixture
def whole(source: Place, tmp_path: Path) -> Place:
    """The dataset of a build with room enough."""
    place = Place(str(tmp_path / "whole"))
    assert Build(source.url, place.url).finish().code == DONE_WITH_FAILURES
    return place


def assert_says_what_is_wrong(finished: Finished, chaos: Chaos) -> None:
    assert finished.code in {0, 1, DONE_WITH_FAILURES}, finished.err
    assert "Traceback" not in finished.err
    assert "internal error" not in finished.err
    if finished.code == 1:
        assert finished.err.count("error:") == 1, finished.err
    chaos.count("builds")
    chaos.count("ended by it", finished.code == 1)


@pytest.mark.timeout(900)
def test_a_sink_on_a_full_disk_is_gone_on_with_once_there_is_room(
    source: Place, whole: Place, tmp_path: Path, chaos: Chaos
) -> None:
    files = [path for path in Path(whole.url).rglob("*") if path.is_file()]
    pages = sum(1 + path.stat().st_size // PAGE for path in files)
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("disk", number)
        with small_disk(tmp_path / "disk", PAGE * draw.randrange(3, pages)) as disk:
            sink = Place(str(disk.path / "sink"))
            assert_says_what_is_wrong(Build(source.url, sink.url).finish(), chaos)
            disk.grow(PAGE * draw.randrange(3, 2 * pages))
            assert_says_what_is_wrong(Build(source.url, sink.url).finish(), chaos)
            disk.grow(PAGE * pages * 10)
            assert Build(source.url, sink.url).finish().code in {0, DONE_WITH_FAILURES}
            assert_same_dataset(sink, whole, attempts=False)
    assert chaos.counts["ended by it"]


@pytest.mark.timeout(900)
def test_files_that_may_not_grow_end_a_build_and_an_export_in_plain_words(
    source: Place, whole: Place, tmp_path: Path, chaos: Chaos
) -> None:
    """By a limit for the process, as where a quota is spent."""
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("limit", number)
        sink = Place(str(tmp_path / f"sink-{number}"))
        for command in (
            Build(source.url, sink.url),
            Command("export", "parquet", whole.url, str(tmp_path / f"out-{number}")),
        ):
            most = int(2 ** draw.uniform(10, 13))  # what is printed goes to a file, too
            psutil.Process(command.pid).rlimit(resource.RLIMIT_FSIZE, (most, most))
            assert_says_what_is_wrong(command.finish(), chaos)
        assert Build(source.url, sink.url).finish().code in {0, DONE_WITH_FAILURES}
        assert_same_dataset(sink, whole, attempts=False)
    assert chaos.counts["ended by it"]
