"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import speechmill
from speechmill.cli.app import app
from speechmill.job import Job, load_job

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "examples" / "corpus"
COMMANDS = [
    ["build"],
    ["plan"],
    ["show"],
    ["failures"],
    ["export", "parquet"],
    ["doctor"],
    ["decode"],
    ["measure"],
    ["repartition"],
    ["tokens", "add"],
    ["tokens", "stats"],
    ["tokens", "verify"],
    ["units", "fit"],
    ["enqueue"],
    ["work"],
    ["dead-letters", "list"],
    ["dead-letters", "retry"],
]
FAKE = ["--transcriber", "fake"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "speechmill", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        timeout=120,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two speakers of the demo corpus, with their texts."""
    for speaker in ("p901", "p902"):
        shutil.copytree(CORPUS / speaker, tmp_path / "corpus" / speaker)
    return tmp_path / "corpus"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(
    command: list[str],
) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"]).output
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown).split())
    assert f"Example: speechmill {' '.join(command)}" in text
    assert f"speechmill {' '.join(command)}" in (ROOT / "README.md").read_text()


def test_every_field_of_the_job_is_a_flag_and_a_key_of_the_file(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["build", "--help"], env={"COLUMNS": "300"}).output
    for name in Job.model_fields:
        if name not in ("source", "sink"):
            assert f"--{name.replace('_', '-')}" in shown, name
    values = Job(source="a", sink="b").model_dump(exclude_none=True)
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if v != {}]
    path = tmp_path / "job.toml"
    path.write_text("\n".join([*lines, "[tokenizer_option]"]))
    assert load_job(path, {}) == Job(source="a", sink="b")


@pytest.mark.slow
def test_build_plan_show_failures_export_on_a_folder(corpus: Path, tmp_path: Path) -> None:
    (corpus / "p902" / "broken.flac").write_bytes(b"<html>not found</html>")
    sink, plain = tmp_path / "out", tmp_path / "plain"
    planned = run("plan", corpus, sink, *FAKE)
    assert planned.returncode == 0
    assert "13 (13 new, 0 changed)" in planned.stdout
    assert not sink.exists()

    built = run("build", corpus, sink, *FAKE)
    assert built.returncode == 3
    assert "NotAudioError" in built.stdout
    assert "13 new" in built.stderr

    failures = run("failures", sink)
    name, stage, reason, attempts = failures.stdout.rstrip("\n").split("\t")
    assert (name, stage, attempts) == ("p902/broken.flac", "decode", "1")
    assert "HTML" in reason

    shown = run("show", sink)
    assert shown.returncode == 0
    assert "1 NotAudioError" in shown.stdout
    assert "12 (0 without speech)" in shown.stdout

    again = run("build", corpus, sink, *FAKE)
    assert again.returncode == 3
    assert "nothing to do" in again.stdout

    (corpus / "p902" / "broken.flac").unlink()
    assert run("build", corpus, sink, *FAKE).returncode == 0

    assert run("export", "parquet", sink, plain).returncode == 0
    assert sorted(p.relative_to(plain).as_posix() for p in plain.rglob("*.parquet")) == [
        "p901/data.parquet",
        "p902/data.parquet",
    ]
    assert pq.read_table(plain / "p901" / "data.parquet").num_rows == 6


def test_a_job_file_says_it_all_and_flags_win(corpus: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f"""
        source = {json.dumps(str(corpus))}
        sink = "out"
        transcriber = "fake"
        include = ["p901/*"]
        tokenizer_option.mfcc.n_mfcc = 13
        """
    )
    assert run("build", "--config", job, "--limit", "2", cwd=tmp_path).returncode == 0
    rows = speechmill.open_dataset(str(tmp_path / "out")).to_table()
    assert rows.num_rows == 2
    assert set(rows["folder_name"].to_pylist()) == {"p901"}
    assert {len(token) for token in rows["token"].to_pylist()} == {13}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build"], 2, "source: is missing"),
        (["build", "a", "b", "--beam-size", "0"], 2, "beam_size"),
        (["build", "a", "b", "--tokenizer", "mfc"], 2, "did you mean 'mfcc'"),
        (["build", "a", "b", "--tokenizer-option", "n_mfcc=3"], 2, "NAME.OPTION=VALUE"),
        (["build", "a", "b", "--transcriber", "fake", "--folder", "["], 2, "regular expression"),
        (["build", "--config", "missing.toml"], 2, "missing.toml"),
        (["build", "a", "b", "--model", "no-such-model"], 1, "no-such-model"),
        (["build", "nowhere", "b", "--transcriber", "fake"], 1, "nowhere"),
        (["show", "nowhere"], 1, "there is no dataset"),
        (["export", "parquet", "nowhere", "out"], 1, "no rows"),
        (["bild"], 2, "build"),
        (["build", "ftp://host/x", "b", "--transcriber", "fake"], 2, "ftp"),
    ],
)
def test_errors_say_what_was_wrong_without_a_traceback(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_the_example_job_file_and_those_of_the_readme_are_jobs(tmp_path: Path) -> None:
    assert load_job(ROOT / "examples" / "job.toml", {}).tokenizer_option == {"mfcc": {"n_mfcc": 20}}
    readme = (ROOT / "README.md").read_text()
    for i, text in enumerate(re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)):
        path = tmp_path / f"{i}.toml"
        path.write_text(text)
        assert load_job(path, {}).source


def test_the_readme_has_no_gaps() -> None:
    assert "@@" not in (ROOT / "README.md").read_text()


def test_failures_and_show_refuse_a_sink_that_is_not_there(tmp_path: Path) -> None:
    for command in ("failures", "show"):
        done = run(command, tmp_path / "nowhere")
        assert done.returncode == 1
        assert "there is no dataset" in done.stderr


def test_what_is_printed_into_a_pipe_is_not_broken_into_lines(corpus: Path, tmp_path: Path) -> None:
    sink = tmp_path / ("[v2]" + 20 * "long")
    environment = {**os.environ, "COLUMNS": "60"}
    command = [sys.executable, "-m", "speechmill", "build", str(corpus), str(sink), *FAKE]
    for expected in (f"{sink}/data", "nothing to do"):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert expected in done.stdout
        assert str(sink) in done.stdout


@pytest.mark.slow
def test_plan_says_what_prune_would_remove_and_which_folders_do_not_match(
    corpus: Path, tmp_path: Path
) -> None:
    sink = tmp_path / "out"
    assert run("build", corpus, sink, *FAKE, "--folder", "^(p901)").returncode == 0
    shutil.rmtree(corpus / "p901")
    planned = run("plan", corpus, sink, *FAKE, "--folder", "^(p901)", "--prune").stdout
    assert "6 recordings, which --prune will remove" in planned
    assert "6 recordings do not match --folder" in planned
    assert (
        "pruned            "
        in run("build", corpus, sink, *FAKE, "--folder", "^(p901)", "--prune").stdout
    )


def test_a_job_file_that_is_thousands_deep_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    for deep in (f"source = {'[' * 5000}{']' * 5000}", f"[{'a.' * 5000}b]", f"a = {'{b=' * 5000}"):
        job.write_text(deep)
        done = run("build", "--config", job)
        assert done.returncode == 2, done.stderr
        assert "internal error" not in done.stderr
    done = run("build", "a", "b", "--tokenizer-option", f"mfcc.n_mfcc={'[' * 5000}")
    assert done.returncode == 2
    assert "internal error" not in done.stderr


def test_an_unknown_key_of_the_job_file_is_named(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('source = "a"\nsink = "b"\nbeam_sice = 3\n')
    done = run("build", "--config", job)
    assert done.returncode == 2
    assert "did you mean 'beam_size'" in done.stderr


@pytest.mark.slow
def test_a_changed_recipe_stops_and_says_what_differs(corpus: Path, tmp_path: Path) -> None:
    sink = tmp_path / "out"
    assert run("build", corpus, sink, *FAKE).returncode == 0
    changed = run("build", corpus, sink, *FAKE, "--tokenizer-option", "mfcc.n_mfcc=13")
    assert changed.returncode == 1
    assert "tokenizers.token.n_mfcc: 20 → 13" in changed.stderr
    rebuilt = run("build", corpus, sink, *FAKE, "--tokenizer-option", "mfcc.n_mfcc=13", "--rebuild")
    assert rebuilt.returncode == 0
    tokens = speechmill.open_dataset(str(sink)).to_table(columns=["token"])["token"]
    assert {len(t) for t in tokens.to_pylist()} == {13}


def test_version_and_completion() -> None:
    assert run("--version").stdout.strip() == f"speechmill {speechmill.__version__}"
    assert "complete" in run("--show-completion", "bash").stdout.lower()


@pytest.mark.slow
def test_doctor_finds_what_is_there_and_what_is_not(corpus: Path, tmp_path: Path) -> None:
    good = run("doctor", corpus, tmp_path / "out", "--model", "base")
    assert "can be listed and read" in good.stdout
    assert "conditional puts are honoured" in good.stdout
    bad = run("doctor", tmp_path / "nowhere")
    assert bad.returncode == 1
    assert "there is no folder" in bad.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import speechmill, sys; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pyarrow", "av", "ctranslate2", "librosa", "boto3", "obstore", "rich"}
    assert not heavy & set(eval(done.stdout))


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(speechmill.__all__) == sorted(speechmill.__all__)
    for name in speechmill.__all__:
        assert getattr(speechmill, name) is not None
    assert set(speechmill.__all__) <= set(dir(speechmill))
    with pytest.raises(AttributeError):
        _ = speechmill.nothing
