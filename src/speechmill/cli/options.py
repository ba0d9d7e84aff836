"""Arguments and options that several commands have."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from speechmill.job import panel_of

__all__ = [
    "EndpointUrl",
    "OutEndpointUrl",
    "OutProfile",
    "Profile",
    "Region",
    "Sink",
    "with_flags",
]

Sink = Annotated[str, typer.Argument(metavar="SINK", help="The dataset: s3://…, a folder.")]
Profile = Annotated[
    str | None, typer.Option(help="Profile of ~/.aws to read credentials from, such as r2.")
]
EndpointUrl = Annotated[
    str | None, typer.Option(help="The object store's endpoint, where it is not AWS.")
]
Region = Annotated[str | None, typer.Option(help="The bucket's region.")]
OutProfile = Annotated[
    str | None, typer.Option(help="Profile of OUT, where it differs from SINK's.")
]
OutEndpointUrl = Annotated[
    str | None, typer.Option(help="Endpoint of OUT, where it differs from SINK's.")
]


def _flag_of(model: type[BaseModel], name: str) -> inspect.Parameter:
    """A field of a model as a flag that is None where it was not given."""
    info = model.model_fields[name]
    of_type = info.annotation
    if get_origin(of_type) is types.UnionType:
        of_type = next(a for a in get_args(of_type) if a is not type(None))
    flag = f"--{name.replace('_', '-')}"
    flags = [f"{flag}/--no-{flag[2:]}"] if of_type is bool else [flag]
    default = info.default
    if get_origin(of_type) in (tuple, dict):
        default = " ".join(map(str, default)) if isinstance(default, tuple) else None
        of_type = list[str]
    elif get_origin(of_type) is Literal:
        of_type = str
    shown = f" [default: {default}]" if default not in (None, "", False) else ""
    option = typer.Option(
        *flags,
        help=f"{info.description}{shown}".replace("*", r"\*"),
        show_default=False,
        rich_help_panel=panel_of(model, name),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[of_type | None, option],  # type: ignore[operator]
    )


def with_flags(
    command: Callable[[Path | None, dict[str, Any]], None],
    arguments: Sequence[tuple[type[BaseModel], str]],
    flags: Sequence[tuple[type[BaseModel], str]],
) -> Callable[..., None]:
    """A command with these fields of models as arguments and flags, and ``--config``.

    It is called with the job file and what was given, by the fields' names.
    """

    def run(**given: Any) -> None:
        config = given.pop("config")
        command(config, {name: value for name, value in given.items() if value not in (None, [])})

    def argument(model: type[BaseModel], name: str) -> inspect.Parameter:
        details = typer.Argument(metavar=name.upper(), help=model.model_fields[name].description)
        return inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[str | None, details],
        )

    config_option = typer.Option(help="A TOML file with any of these options; flags win.")
    parameters = [
        *(argument(model, name) for model, name in arguments),
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, config_option],
        ),
        *(_flag_of(model, name) for model, name in flags),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run
