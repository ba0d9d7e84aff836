"""Recordings that end the process that works on them, whatever the reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from speechmill.dataset.summary import failed_recordings
from speechmill.pipeline.suspects import DEATHS_ALONE, DEATHS_TOGETHER, InHand
from speechmill.storage import open_store
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


def test_what_a_living_process_has_in_hand_is_no_suspect() -> None:
    sink = open_store(memory())
    with InHand(sink).note(["a", "b"]):
        assert not InHand(sink).has_suspects
    assert not list(sink.list("_speechmill/in-hand"))


def test_a_recording_is_suspected_once_two_processes_died_with_it_in_hand() -> None:
    sink = open_store(memory())
    dead = {"host": "another", "pid": 1, "start": "7"}

    def die(name: str, *names: str) -> None:
        with InHand(sink).note(names):
            (key,) = (o.key for o in sink.list("_speechmill/in-hand") if "dead" not in o.key)
            told = json.loads(sink.get(key).data)
        sink.put(
            f"_speechmill/in-hand/dead-{name}.json", json.dumps({**told, "process": dead}).encode()
        )

    die("1", "a", "b")
    assert not InHand(sink).has_suspects
    die("2", "b", "c")
    found = InHand(sink)
    assert [found.is_suspect(name) for name in "abc"] == [False, True, False]
    with found.note(["b", "c"]):
        pass
    assert not found.has_suspects
    assert [o.key for o in sink.list("_speechmill/in-hand")] == ["_speechmill/in-hand/dead-1.json"]
    found.forget()
    assert not list(sink.list("_speechmill/in-hand"))


def test_notes_that_cannot_be_read_are_left_alone() -> None:
    sink = open_store(
        memory({"_speechmill/in-hand/1.json": b"[]", "_speechmill/in-hand/2.json": b"{"})
    )
    assert not InHand(sink).has_suspects
