"""From outside nothing has changed since the modules got their rooms: see ``tests/golden``."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import speechmill
from tests.golden import outside

NEARLY = 0.05  # of figures of the model, which another kind of processor may compute otherwise


def kept(name: str) -> Any:
    return json.loads((outside.HERE / f"{name}.json").read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_the_public_names_are_there() -> None:
    for module, names in kept("names").items():
        missing = [name for name in names if not hasattr(import_module(module), name)]
        assert not missing, module


def test_every_command_says_what_it_said(tmp_path: Path) -> None:
    assert outside.helps(tmp_path) == kept("helps")


@pytest.mark.slow
def test_commands_end_with_the_codes_they_had(tmp_path: Path) -> None:
    outside.make_source(tmp_path / "source")
    assert outside.exit_codes(tmp_path) == kept("exit_codes")


@pytest.mark.parametrize("name", outside.JOBS)
def test_a_build_has_the_recipe_the_parts_the_rows_and_the_bytes_it_had(
    name: str, tmp_path: Path
) -> None:
    source = outside.make_source(tmp_path / "source")
    made = outside.builds({name: outside.JOBS[name]}, source, tmp_path / "sinks")
    assert plain(made[name]) == kept("builds")[name]


@pytest.mark.slow
def test_a_build_with_a_model_makes_the_recipe_and_the_rows_it_made(tmp_path: Path) -> None:
    source = outside.make_speech(tmp_path / "source")
    made = plain(outside.builds(outside.MODELS, source, tmp_path / "sinks"))
    assert_alike(made, kept("speech"))


def assert_alike(mine: Any, theirs: Any, path: str = "") -> None:
    """The same, but for the last bits of the model's figures, and bytes, which hold them."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), path
        for key in theirs:
            if key != "bytes":
                assert_alike(mine[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), path
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert_alike(a, b, f"{path}/{number}")
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, abs=NEARLY), path
    else:
        assert mine == theirs, path


@pytest.fixture(params=["built", "adding"])
def old_sink(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sink of the code before, all built, or cut short in a ``tokens add``; and its source."""
    source = outside.make_source(tmp_path / "source")
    sink = tmp_path / "sink"
    shutil.copytree(outside.HERE / "sinks" / request.param, sink)
    agreed = sink / "_speechmill" / "source.json"
    agreed.write_text(agreed.read_text().replace('"SOURCE"', json.dumps(str(source))))
    return sink


FAKES = {"transcriber": "fake", "tokenizer": "fake", "part_minutes": 0.05}


def test_a_sink_of_before_is_complete_and_grows(old_sink: Path, tmp_path: Path) -> None:
    job = speechmill.Job(source=str(tmp_path / "source"), sink=str(old_sink), **FAKES)
    before = outside.sink_state(old_sink)
    assert speechmill.build(job).rows == 0
    assert outside.sink_state(old_sink) == before
    shutil.copy(tmp_path / "source/p1/a.wav", tmp_path / "source/p1/new.wav")
    assert speechmill.build(job).rows == 1
    assert speechmill.open_dataset(str(old_sink)).count_rows() == 9


def test_what_was_being_added_to_a_sink_of_before_is_added_to_its_end(
    old_sink: Path, tmp_path: Path
) -> None:
    done = outside.run(
        "tokens", "add", str(old_sink), "--tokenizer", "mfcc",
        "--tokenizer-option", "mfcc.n_mfcc=4", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = tmp_path / "new"
    options = {"tokenizer": ("fake", "mfcc"), "tokenizer_option": {"mfcc": {"n_mfcc": 4}}}
    job = speechmill.Job(source=str(tmp_path / "source"), sink=str(new), **{**FAKES, **options})
    speechmill.build(job)
    old, made = rows(old_sink), rows(new)
    since = made[0].keys() - old[0].keys()  # columns that came since, of what was not asked for
    assert all(row.pop(name) is None for name in since for row in made)
    assert old == made


def rows(sink: Path) -> list[Any]:
    table = speechmill.open_dataset(str(sink)).to_table().drop_columns(list(outside.TIMES))
    found: list[Any] = table.sort_by(
        [("file_name", "ascending"), ("start_s", "ascending")]
    ).to_pylist()
    return found
