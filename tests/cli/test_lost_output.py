"""Standard output that takes not all characters, is closed, or is full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.corpus import build, rows_of, wav, write

LETTERS = """
import sys
from speechmill.cli.app import main
from speechmill.queues import dead_letters, open_broker
from speechmill.queues.base import Message
dead_letters.IDLE_S = 0.05
letters = open_broker("memory://m/q").dead_letters()
letters.publish([Message(b"no JSON", "", {"speechmill-reason": "non \\u00e8 JSON"})])
sys.argv = ["speechmill", "dead-letters", "list", "memory://m/q"]
main()
"""
ASCII: tuple[Mapping[str, str], ...] = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.fixture
def sink(tmp_path: Path) -> Path:
    """A dataset with a row and a failure, whose names are not ASCII."""
    write(tmp_path / "source", {"zoë/1.wav": wav(1), "zoë/è.wav": b"no audio"})
    build(str(tmp_path / "source"), str(tmp_path / "sink"))
    return tmp_path / "sink"


def command(name: str, sink: Path) -> list[str]:
    if name == "dead-letters":
        return [sys.executable, "-c", LETTERS]
    words = [sys.executable, "-m", "speechmill", name]
    if name == "build":
        fake = ("--transcriber", "fake", "--tokenizer", "fake")
        return [*words, str(sink.parent / "source"), str(sink.parent / "new"), *fake]
    return [*words, str(sink)]


def run(words: list[str], into: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    shell = ["/bin/sh", "-c", f'exec "$@" {into}', "sh", *words]
    environment = {**os.environ, "COLUMNS": "200", **env}
    return subprocess.run(shell, capture_output=True, check=False, env=environment, timeout=120)


NAMES = ("build", "show", "failures", "dead-letters")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("env", ASCII, ids=["PYTHONIOENCODING", "LC_ALL"])
def test_characters_that_cannot_be_encoded_are_replaced(
    name: str, env: Mapping[str, str], sink: Path
) -> None:
    done = run(command(name, sink), **env)
    assert done.returncode == (3 if name == "build" else 0), done.stderr
    assert done.stdout.isascii()
    assert done.stdout
    if name in ("failures", "dead-letters"):
        assert rb"\xe8" in done.stdout
    assert b"error" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("into", [">&-", "> /dev/full"], ids=["closed", "full"])
def test_output_that_cannot_be_written_is_told_and_the_work_counts(
    name: str, into: str, sink: Path
) -> None:
    done = run(command(name, sink), into)
    assert b"Traceback" not in done.stderr
    assert b"internal error" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    told = [line for line in done.stderr.decode().splitlines() if "could not be" in line]
    assert len(told) == 1, done.stderr
    if name == "build":
        assert done.returncode == 3
        assert "the work is not affected" in told[0]
        assert set(rows_of(str(sink.parent / "new"))) == {"zoë/1.wav"}
    else:
        assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_streams_may_be_closed(name: str, sink: Path) -> None:
    done = run(command(name, sink), "<&- >&- 2>&-")
    assert done.returncode == (3 if name == "build" else 1)
    if name == "build":
        assert set(rows_of(str(sink.parent / "new"))) == {"zoë/1.wav"}


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_a_listing_without_a_word(sink: Path) -> None:
    words = " ".join(command("failures", sink))
    done = run(["/bin/sh", "-c", f"({words}; echo code $? >&2) | true"])
    assert b"Traceback" not in done.stderr
    assert b"could not be" not in done.stderr
