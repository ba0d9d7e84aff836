"""Flags from the fields of option models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from speechmill.cli.app import app
from speechmill.cli.options import Differing, Storage, with_flags
from speechmill.job import Job
from speechmill.storage import StoreOptions

SINK = StoreOptions("r2", "http://sink", "auto")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Storage(), SINK),
        (Storage(profile="other"), StoreOptions("other", "http://sink", "auto")),
        (Storage("a", "http://b", "c"), StoreOptions("a", "http://b", "c")),
    ],
)
def test_a_second_place_is_reached_as_the_first_where_nothing_else_is_given(
    given: Storage, expected: StoreOptions
) -> None:
    assert given.options(Storage("r2", "http://sink", "auto")) == expected


@dataclass(frozen=True, slots=True)
class Cut:
    """An option model."""

    length_s: Annotated[float, typer.Option(min=1, help="How long.")] = 30.0
    only: Annotated[list[str] | None, typer.Option(help="Which.")] = None


def called_with(*arguments: str) -> tuple[int, dict[str, Any]]:
    """What a command with models is called with."""
    heard: dict[str, Any] = {}

    def command(
        sink: str,
        *,
        cut: Cut,
        storage: Storage,
        out_storage: Annotated[Storage, Differing("out", "OUT", "SINK", ("profile",))],
        again: bool = False,
    ) -> None:
        heard.update(sink=sink, cut=cut, storage=storage, out=out_storage, again=again)

    one = typer.Typer()
    one.command()(with_flags(command))
    return CliRunner().invoke(one, list(arguments)).exit_code, heard


def test_a_command_gets_its_models_made_of_their_flags() -> None:
    code, heard = called_with(
        "here", "--length-s", "3", "--only", "a", "--only", "b", "--profile", "r2",
        "--out-profile", "aws", "--again",
    )  # fmt: skip
    assert code == 0
    assert heard == {
        "sink": "here",
        "cut": Cut(3.0, ["a", "b"]),
        "storage": Storage("r2"),
        "out": Storage("aws"),
        "again": True,
    }


def test_what_is_not_given_is_as_the_model_says() -> None:
    assert called_with("here")[1]["cut"] == Cut()
    assert called_with("here", "--length-s", "0") == (2, {})
    assert called_with("here", "--out-region", "auto") == (2, {})


def flags_of(command: Any, path: str = "") -> dict[str, dict[str, str]]:
    """The flags of all commands below this one, and what is said of them."""
    found = {path: {p.name: getattr(p, "help", "") for p in command.params}}
    for name, one in getattr(command, "commands", {}).items():
        found.update(flags_of(one, f"{path} {name}".strip()))
    return found


def test_storage_flags_mean_the_same_in_every_command_that_has_them() -> None:
    commands = flags_of(typer.main.get_command(app))
    assert {"build", "show", "tokens add", "units fit"} <= commands.keys()
    for flag in ("profile", "endpoint_url", "region"):
        said = {told[flag] for told in commands.values() if flag in told}
        assert said == {Job.model_fields[flag].description}
