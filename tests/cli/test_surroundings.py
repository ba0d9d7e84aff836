"""Commands where the working directory is gone, or arguments are no text: an error that says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from speechmill.errors import JobError
from speechmill.job import Job
from speechmill.storage import open_store
from tests.cli.test_app import COMMANDS

ODD = b"sp\xe9ech"  # Latin-1
# What each command is given besides, so that it would come to its paths.
BESIDES: dict[tuple[str, ...], list[str]] = {
    ("decode",): ["out"],
    ("export", "parquet"): ["out"],
    ("measure",): ["level"],
    ("repartition",): ["out", "--by", "language"],
    ("tokens", "add"): ["--tokenizer", "mfcc"],
    ("enqueue",): ["kafka://127.0.0.1:1/x"],
    ("work",): ["out"],
    ("build",): ["out", "--transcriber", "fake"],
    ("plan",): ["out", "--transcriber", "fake"],
}
ENV = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0"}  # a locale that knows ASCII only
# Commands, each in a process of its own, of which none has to import anything.
EACH = """
import json, os, sys
from speechmill.cli.app import main
if sys.argv[1:]:
    os.rmdir(sys.argv[1])
for words in json.loads(sys.stdin.read()):
    sys.stderr.flush()
    if not (child := os.fork()):
        sys.argv = ["speechmill", *words]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"\\x00{code}", file=sys.stderr, end="\\x00", flush=True)
"""


def run(*arguments: str | bytes, cwd: Path, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "speechmill", *arguments],
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**ENV, **env},
        timeout=60,
    )
    return done.returncode, " ".join(done.stderr.decode().split())


def run_each(
    commands: Sequence[Sequence[str]],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    *,
    without_it: bool = False,
) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-c", EACH, *([str(cwd)] if without_it else [])],
        input=json.dumps(commands).encode(),
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**ENV, **(env or {})},
        timeout=60,
    )
    *told, rest = done.stderr.decode().split("\x00")
    assert (done.returncode, done.stdout, rest) == (0, b"", "")
    return [
        (int(code), " ".join(text.split()))
        for text, code in zip(told[::2], told[1::2], strict=True)
    ]


def given(place: str) -> list[list[str]]:
    """All commands that are told of a place, first of all."""
    return [[*command, place, *BESIDES.get(tuple(command), [])] for command in COMMANDS]


def assert_refused(ended: tuple[int, str], *said: str) -> None:
    code, told = ended
    assert code == 2, told
    assert told.startswith("error: ")
    assert all(one in told for one in said), told


@pytest.mark.parametrize("locale", [{}, BARE], ids=["UTF-8", "C"])
def test_a_path_that_is_no_text_is_an_error_of_every_command(
    locale: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / os.fsdecode(ODD)).mkdir()
    for command, ended in zip(
        COMMANDS, run_each(given(os.fsdecode(ODD)), tmp_path, locale), strict=True
    ):
        assert_refused(ended, f"argument {len(command) + 1} holds bytes that are not UTF-8")
    assert not list((tmp_path / os.fsdecode(ODD)).iterdir())


def test_so_is_any_option_that_is_no_text_and_it_is_not_shown(tmp_path: Path) -> None:
    odd = os.fsdecode(ODD)
    commands = [
        ["build", "in", odd],
        ["build", "in", "out", "--include", odd],
        ["build", "in", "out", "--config", odd],
        ["build", "in", "out", f"--profile={odd}"],
        ["build", f"s3://bucket/{odd}", "out"],
    ]
    for ended in run_each(commands, tmp_path):
        assert_refused(ended, "holds bytes that are not UTF-8")
        assert "sp" not in ended[1]


def test_arguments_as_a_shell_gives_them_are_told_apart(tmp_path: Path) -> None:
    assert_refused(run("build", ODD, "out", cwd=tmp_path), "bytes that are not UTF-8")
    assert_refused(run("build", ODD, "out", cwd=tmp_path, **BARE), "bytes that are not UTF-8")
    ended = run("build", "Zoë".encode(), "out", cwd=tmp_path, **BARE)
    assert_refused(ended, "argument 2 cannot be read", "PYTHONUTF8=1")


def test_a_working_directory_that_is_gone_is_an_error_of_every_command(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for ended in run_each(given("in"), gone, without_it=True):
        assert_refused(ended, "the working directory cannot be found", "change to another one")


def test_python_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="source: holds bytes that are not UTF-8"):
        Job(source=os.fsdecode(ODD), sink="out")
    with pytest.raises(JobError, match="exclude: holds bytes"):
        Job(source="in", sink="out", exclude=["a", os.fsdecode(ODD)])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(JobError, match="the working directory cannot be found"):
        open_store("in")
    assert open_store(str(tmp_path)).url == str(tmp_path)
