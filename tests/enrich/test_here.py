"""Rows that end the process that measures them, whatever the reason, and what finds no room: the
others have their values, and the same command tries again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import speechmill
from speechmill.audio import spilling
from speechmill.dataset.commit import read_part
from speechmill.enrich.add import add_tokens, measure
from speechmill.enrich.here import ADDING
from speechmill.enrich.maker import Maker, Outcome
from speechmill.pipeline.suspects import DEATHS_ALONE, DEATHS_TOGETHER
from speechmill.storage import Store, open_store
from tests.support.corpus import build, wav, write
from tests.support.engine_work import DEADLY
from tests.support.room import limited_room

NAMES = [f"p{i % 3}/{i // 3}.wav" for i in range(12)]
MEASURE = """
import sys
from speechmill.cli.app import main
from speechmill.enrich import shards
from tests.support.engine_work import DEADLY, deadly

shards.SHARD_S = 1.0  # some parts together, not all
sys.argv[1:1] = ["measure"]
with deadly(DEADLY):
    main()
"""


@pytest.fixture
def sink(tmp_path: Path) -> str:
    files = {n: wav(i, 0.3 if n == DEADLY else 0.2) for i, n in enumerate(NAMES)}
    source, sink = write(tmp_path / "in", files), str(tmp_path / "out")
    assert build(source, sink, part_minutes=0.01).rows == len(NAMES)
    return sink


def lacking(sink: str, column: str = "fake_score") -> list[str]:
    rows = speechmill.open_dataset(sink).to_table()
    return sorted(rows.filter(pc.is_null(rows[column]))["file_name"].to_pylist())


def notes(sink: str) -> list[str]:
    """What is noted below the state of a sink of deaths, and what is staged."""
    keys = [o.key for o in open_store(sink).list("_speechmill")]
    return [key for key in keys if "in-hand" in key or "suspects" in key or ADDING in key]


def names_of(store: Store, key: str) -> list[str]:
    return list(read_part(key, store.get(key).data)["file_name"].to_pylist())


def run(sink: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEASURE, sink, "fake"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_row_that_ends_every_measuring_is_set_aside_and_all_others_have_their_values(
    sink: str,
) -> None:
    deaths = 0
    while (ended := run(sink)).returncode == -signal.SIGSEGV:
        deaths += 1
        assert deaths <= DEATHS_TOGETHER + DEATHS_ALONE
    assert deaths == DEATHS_TOGETHER + DEATHS_ALONE
    assert ended.returncode == 3, ended.stderr
    assert DEADLY in ended.stdout + ended.stderr
    assert "2 workers went away while they had nothing else in hand" in ended.stdout + ended.stderr
    assert lacking(sink) == [DEADLY]
    assert notes(sink) == []
    assert measure(open_store(sink), ["fake"]).rows == 1  # a Speechmill that does not die of it
    assert lacking(sink) == []


def test_a_measuring_that_was_killed_twice_for_other_reasons_tries_alone_and_ends_well(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sink)
    suspects = [part.key for part in store.list("data")]
    told = {"process": {"host": "elsewhere"}, "deaths": dict.fromkeys(suspects[:2], 1)}
    store.put(f"_speechmill/{ADDING}-in-hand/1.json", json.dumps(told).encode())
    alone: list[str] = []
    make = Maker.make

    def noted(
        self: Maker, parts: Any, given_up: Any, stop: Any, only: Collection[str] = ()
    ) -> Iterator[Outcome]:
        alone.extend(only)
        return make(self, parts, given_up, stop, only)

    monkeypatch.setattr(Maker, "make", noted)
    report = measure(store, ["fake"])
    assert (report.rows, report.complete) == (len(NAMES), True)
    some = [name for key in suspects[:2] for name in names_of(store, key)]
    assert sorted(alone) == sorted(some)
    assert lacking(sink) == []


# Room for temporary files: each recording of 0.2 s is 12,800 bytes as a waveform.


@pytest.fixture
def all_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)


@pytest.mark.usefixtures("all_in_files")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("room", [20_000, 30_000])
def test_recordings_that_find_no_room_wait_for_it(
    sink: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited_room(monkeypatch, room)
    report = measure(open_store(sink), ["fake"])
    assert (report.rows, report.complete) == (len(NAMES), True)
    report = add_tokens(open_store(sink), "mfcc")
    assert (report.rows, report.complete) == (len(NAMES), True)


@pytest.mark.usefixtures("all_in_files")
@pytest.mark.timeout(60)
def test_one_that_does_not_fit_at_all_is_named_and_the_next_command_tries_it_again(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited_room(monkeypatch, 15_000)
    report = measure(open_store(sink), ["fake"])
    assert (report.rows, dict(report.lost)) == (len(NAMES) - 1, {"failed": 1})
    assert set(report.reasons) == {DEADLY}
    assert "NoRoomError" in report.reasons[DEADLY]
    assert "let TMPDIR name another folder" in report.reasons[DEADLY]
    monkeypatch.undo()
    report = measure(open_store(sink), ["fake"])
    assert (report.rows, report.complete) == (1, True)
