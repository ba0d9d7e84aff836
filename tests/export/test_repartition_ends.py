"""A repartition that is stopped, killed, or whose sink changes meanwhile."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from speechmill.dataset.layout import data_key
from speechmill.dataset.schema import to_parquet, utterances_to_table
from speechmill.errors import ReplacedError
from speechmill.export import repartition as module
from speechmill.export.files import Unit, in_threads
from speechmill.records import Part
from speechmill.storage import open_store
from tests.support.corpus import memory
from tests.support.repartitions import (
    SCHEMA,
    all_rows,
    files,
    make_sink,
    run,
    sink,
    utterance,
)


def test_what_was_stopped_goes_on_and_comes_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = memory(), memory()
    run(sink(), whole, rows_per_file=2)
    monkeypatch.setattr(module, "UNIT_BYTES", 1)
    asked = itertools.count()
    first = run(sink(), out, rows_per_file=2, stop=lambda: next(asked) > 3)
    assert first.stopped
    assert 0 < first.rows < all_rows(sink()).num_rows
    state = json.loads(open_store(out).get("_speechmill/repartition.json").data)
    assert state["complete"] is False
    second = run(sink(), out, rows_per_file=2)
    assert not second.stopped
    assert second.resumed > 0
    assert first.rows + second.rows == all_rows(sink()).num_rows
    assert files(open_store(out)) == files(open_store(whole))
    third = run(sink(), out, rows_per_file=2)
    assert (third.rows, third.files) == (0, 0)


def start(*arguments: str, unit_bytes: int = module.UNIT_BYTES) -> subprocess.Popen[str]:
    script = (
        "import typer; from speechmill.export import repartition; "
        f"repartition.UNIT_BYTES = {unit_bytes}; "
        "from speechmill.cli.repartition import repartition as command; typer.run(command)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def signal_after(process: subprocess.Popen[str], number: int, out: str, num_files: int) -> str:
    """Signal the process once it has written so many files. Returns what it has said."""
    deadline = time.monotonic() + 60
    while sum(1 for _ in Path(out).glob("data/*/*.parquet")) < num_files:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=60)[0]


def test_what_was_killed_goes_on_and_comes_out_the_same(tmp_path: Path) -> None:
    source, whole, out = (str(tmp_path / name) for name in ("sink", "whole", "out"))
    make_sink(source, [(f"p{i}", 0, 40) for i in range(8)])
    run(source, whole, ["folder_name"], rows_per_file=1)
    arguments = (source, out, "--by", "folder_name", "--rows-per-file", "1")
    signal_after(start(*arguments), signal.SIGKILL, out, 20)
    written = sum(1 for _ in Path(out).glob("data/*/*.parquet"))
    assert written < 320
    said, _ = (again := start(*arguments)).communicate(timeout=120)
    assert again.returncode == 0, said
    assert re.search(r"to do: \d+ rows in \d+ files; \d+ files are there from before", said)
    assert files(open_store(out)) == files(open_store(whole))
    assert not list(Path(out).glob(".*"))


def test_a_signal_stops_it_and_it_says_how_to_go_on(tmp_path: Path) -> None:
    source, out = str(tmp_path / "sink"), str(tmp_path / "out")
    make_sink(source, [(f"p{i}", 0, 40) for i in range(8)])
    process = start(source, out, "--by", "folder_name", "--rows-per-file", "1", unit_bytes=1)
    said = signal_after(process, signal.SIGTERM, out, 5)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert re.search(r"\d+ rows were written; stopped; the same command goes on", said)
    state = json.loads(Path(out, "_speechmill", "repartition.json").read_text())
    assert state["complete"] is False


@pytest.mark.parametrize("gone", [False, True])
def test_a_part_that_is_replaced_meanwhile_is_an_error_not_a_mixture(gone: bool) -> None:
    source, out = memory(), memory()
    store = make_sink(source, [("p", 0, 9), ("q", 0, 9)])

    def meddle(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
        if gone:
            store.delete(data_key(Part("q", 0, 99)))
        else:
            table = utterances_to_table([utterance("q", 7)], SCHEMA, "r1")
            store.put(data_key(Part("q", 0, 99)), to_parquet(table))
        yield from in_threads(units, stop)

    with pytest.raises(ReplacedError, match="empty OUT and begin anew"):
        run(source, out, run=meddle)
    state = json.loads(open_store(out).get("_speechmill/repartition.json").data)
    assert state["complete"] is False
