"""What comes from outside is shown, and neither obeyed nor taken for markup."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from speechmill.cli.app import app
from speechmill.cli.console import OBEYED, _Console, err, out, visible
from speechmill.queues import dead_letters, open_broker
from speechmill.queues.base import Message
from tests.support.corpus import wav, write

EVIL = "\x1b]0;owned\x07\x1b[31m[bold red]\x9b2J\u202eexe.\u2066\u2028\x7f:smile:\r"
FAKE = ("--transcriber", "fake", "--tokenizer", "fake")
SHOWN = r"\x1b]0;owned\x07\x1b[31m[bold red]\x9b2J\u202eexe.\u2066\u2028\x7f:smile:\r"


def obeyed(text: str) -> list[str]:
    return OBEYED.findall(text.replace("\n", "").replace("\t", ""))


@given(st.text())
def test_no_text_is_obeyed_and_letters_stay(text: str) -> None:
    shown = visible(text)
    assert not OBEYED.search(shown)
    assert visible(shown) == shown
    assert OBEYED.search(text) or shown == text


@pytest.mark.parametrize("text", ["Zoë", "日本語", "العربية", "हिन्दी", "a\u200db", "🎙"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_a_terminals_own_colours_stay_and_those_of_names_do_not() -> None:
    file = io.StringIO()
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    terminal = _Console(file=file, force_terminal=True, color_system="standard", width=200, **plain)
    table = Table("name", title="names")
    table.add_row(EVIL)
    terminal.print(table, soft_wrap=True)
    terminal.print(EVIL, style="green")
    shown = file.getvalue()
    assert "\x1b[32m" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b]" not in shown
    assert r"\x1b[31m[bold red]" in shown


def test_both_streams_are_such_consoles() -> None:
    assert isinstance(out, _Console)
    assert isinstance(err, _Console)
    views = Path(__file__).parents[2] / "src" / "speechmill"
    others = [
        path.name
        for path in views.rglob("*.py")
        if any(word in path.read_text() for word in ("typer.echo(", "click.echo(", " print("))
    ]
    assert others == []


def speechmill(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "speechmill", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "COLUMNS": "300", "PYTHONUTF8": "1"},
        timeout=120,
    )


@pytest.mark.slow
def test_names_of_files_and_folders_are_shown_by_every_command(tmp_path: Path) -> None:
    files = {f"p1/{EVIL}.wav": b"no audio", f"{EVIL}/1.wav": wav(1), f"b/{EVIL}/2.wav": wav(2)}
    source = write(tmp_path / f"source{EVIL}", files)
    sink = str(tmp_path / f"sink{EVIL}")
    said = {}
    for command, code in {
        ("plan", source, sink, *FAKE): 0,
        ("build", source, sink, *FAKE): 3,
        ("show", sink): 0,
        ("failures", sink): 0,
        ("export", "parquet", sink, str(tmp_path / EVIL)): 0,
        ("show", f"{source}/{EVIL}/none"): 1,
        ("doctor", source, sink): 0,
        ("build", "--config", f"{source}/no"): 2,
        ("show", sink, EVIL): 2,
        (EVIL,): 2,
    }.items():
        done = speechmill(*command)
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == code or command[0] == "doctor", text
        assert not obeyed(text), (command, text)
        assert "Traceback" not in text
        said[command[0]] = text
    assert SHOWN in said["failures"]
    assert SHOWN in said["plan"]


def test_dead_letters_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "IDLE_S", 0.05)
    url = "memory://console/q"
    headers = {"speechmill-reason": f"is not JSON: {EVIL}", "speechmill-error": EVIL}
    open_broker(url).dead_letters().publish([Message(f"{EVIL}\n".encode(), "", headers)])
    shown = CliRunner().invoke(app, ["dead-letters", "list", url]).output
    assert "is not JSON" in shown
    assert not obeyed(shown)


def test_words_that_belong_to_no_flag_are_not_repeated() -> None:
    done = speechmill("work", "memory://m/q", "out", "--broker-option", "sasl.password", "s3cr3t")
    assert done.returncode == 2
    assert b"unexpected extra argument" in done.stderr
    assert b"s3cr3t" not in done.stderr + done.stdout
