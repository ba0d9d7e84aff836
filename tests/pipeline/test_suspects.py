"""Recordings that end the process that works on them, whatever the reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import speechmill
from speechmill import Job
from speechmill.dataset.summary import failed_recordings
from speechmill.errors import UnavailableError
from speechmill.pipeline.suspects import DEATHS_ALONE, DEATHS_TOGETHER, CrashCounts, InHand
from speechmill.storage import Store, open_store
from tests.support.corpus import memory, rows_of, wav, write

CULPRIT = "p1/3.wav"
BUILD = """
import os, signal, sys
from speechmill import Job, build
from speechmill.tokenizers import fake

encode = fake.FakeTokenizer.encode

def rough(self, waveforms):
    if any(len(waveform) == 4800 for waveform in waveforms):
        os.kill(os.getpid(), signal.SIGSEGV)
    return encode(self, waveforms)

fake.FakeTokenizer.encode = rough
report = build(Job(source=sys.argv[1], sink=sys.argv[2], transcriber="fake", tokenizer=("fake",)))
print(report.rows, report.failed)
"""


def build(source: str, sink: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-c", BUILD, source, sink],
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout


def test_a_recording_that_ends_every_build_is_set_aside_and_all_others_have_their_rows(
    tmp_path: Path,
) -> None:
    files = {f"p1/{i}.wav": wav(i, 0.3 if f"p1/{i}.wav" == CULPRIT else 0.2) for i in range(8)}
    source, sink = write(tmp_path / "in", files), str(tmp_path / "out")
    deaths = 0
    while (ended := build(source, sink))[0] == -signal.SIGSEGV:
        deaths += 1
        assert deaths <= DEATHS_TOGETHER + DEATHS_ALONE
    assert ended[0] == 0
    assert rows_of(sink).keys() == files.keys() - {CULPRIT}
    (failure,) = failed_recordings(open_store(sink))
    assert (failure.file_name, failure.stage) == (CULPRIT, "worker")
    assert "2 workers went away while they had nothing else in hand" in failure.message
    assert not [o.key for o in open_store(sink).list("_speechmill/in-hand")]
    assert not [o.key for o in open_store(sink).list("_speechmill/suspects")]


def test_counts_that_killed_builds_have_left_go_when_one_ends_well(tmp_path: Path) -> None:
    files = {f"p1/{i}.wav": wav(i) for i in range(3)}
    source, sink = write(tmp_path / "in", files), str(tmp_path / "out")
    job = Job(source=source, sink=sink, transcriber="fake", tokenizer=("fake",))
    speechmill.build(job)
    store = open_store(sink)
    assert CrashCounts(store, 2).begin("p1/1.wav")  # and killed once its row was there
    assert [o.key for o in store.list("_speechmill/suspects")]
    assert speechmill.build(job).recordings == 0
    assert not [o.key for o in store.list("_speechmill/suspects")]


def suspects(in_hand: InHand) -> str:
    return "".join(name for name in "abc" if in_hand.is_suspect(name))


@pytest.fixture
def sink() -> Store:
    return open_store(memory())


def die(sink: Store, name: str, *names: str, host: str | None = None) -> None:
    """Leave the note of a process that has died with these in hand."""
    with InHand(sink).note(names):
        (key,) = (o.key for o in sink.list("_speechmill/in-hand") if "dead" not in o.key)
        told = json.loads(sink.get(key).data)
    told["process"] |= {"start": "7"} if host is None else {"host": host}
    sink.put(f"_speechmill/in-hand/dead-{name}.json", json.dumps(told).encode())


def notes(sink: Store) -> list[str]:
    return [o.key.rpartition("/")[2] for o in sink.list("_speechmill/in-hand")]


def test_what_a_living_process_has_in_hand_is_no_suspect(sink: Store) -> None:
    for _ in range(3):
        with InHand(sink).note(["a", "b"]):
            assert suspects(InHand(sink)) == ""
    assert notes(sink) == []


def test_a_recording_is_suspected_once_two_processes_died_with_it_in_hand(sink: Store) -> None:
    die(sink, "1", "a", "b")
    assert suspects(InHand(sink)) == ""
    die(sink, "2", "b", "c")
    found = InHand(sink)
    assert suspects(found) == "b"
    found.done(["b", "c"])
    assert suspects(found) == ""
    assert notes(sink) == ["dead-1.json"]
    found.forget()
    assert notes(sink) == []


def test_notes_of_other_machines_count_and_are_left_to_them(sink: Store) -> None:
    die(sink, "1", "a", host="elsewhere")
    die(sink, "2", "a", host="elsewhere")
    found = InHand(sink)
    assert suspects(found) == "a"
    found.done(["a"])
    found.forget()
    assert suspects(found) == ""
    assert notes(sink) == ["dead-1.json", "dead-2.json"]


def test_notes_are_safe_for_threads(sink: Store) -> None:
    die(sink, "1", *map(str, range(500)))
    die(sink, "2", *map(str, range(500)))
    found = InHand(sink)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(found.done, ([str(i)] for i in range(500))))
    assert notes(sink) == []


def test_notes_that_cannot_be_read_are_left_alone() -> None:
    bad = {"_speechmill/in-hand/1.json": b"[]", "_speechmill/in-hand/2.json": b"{"}
    assert suspects(InHand(open_store(memory(bad)))) == ""


def test_an_error_of_a_store_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"p1/{i}.wav": wav(i) for i in range(3)}
    source, sink = write(tmp_path / "in", files), str(tmp_path / "out")
    for name in "12":
        die(open_store(sink), name, "p1/1.wav")
    job = Job(source=source, sink=sink, transcriber="fake", tokenizer=("fake",))

    def down(*_: object, **__: object) -> None:
        raise UnavailableError("the store is down")

    for _ in range(DEATHS_ALONE + 1):
        with monkeypatch.context() as patch:
            patch.setattr("speechmill.runners.local.process_shard", down)
            with pytest.raises(UnavailableError):
                speechmill.build(job)
    assert speechmill.build(job).failed == 0
    assert rows_of(sink).keys() == files.keys()
