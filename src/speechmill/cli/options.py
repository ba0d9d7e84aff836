"""Arguments and options of commands, and how a command gets them from the fields of models."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from speechmill.job import Job, Options, panel_of

if TYPE_CHECKING:
    from speechmill.storage import Store, StoreOptions

__all__ = [
    "Destination",
    "Differing",
    "OutStorage",
    "ReadStorage",
    "Sink",
    "Storage",
    "described",
    "with_config",
    "with_flags",
]


def described(model: type[Options], name: str) -> str:
    """What a field of a model says of itself, for an option that means the same."""
    return model.model_fields[name].description or ""


Sink = Annotated[str, typer.Argument(metavar="SINK", help="The dataset: s3://…, a folder.")]
Destination = Annotated[str, typer.Argument(metavar="OUT", help="Where the files go.")]


@dataclass(frozen=True, slots=True)
class Storage:
    """How to reach a store."""

    profile: Annotated[str | None, typer.Option(help=described(Job, "profile"))] = None
    endpoint_url: Annotated[str | None, typer.Option(help=described(Job, "endpoint_url"))] = None
    region: Annotated[str | None, typer.Option(help=described(Job, "region"))] = None

    def options(self, otherwise: Storage | None = None) -> StoreOptions:
        """These options; where one is not given, that of ``otherwise``."""
        from speechmill.storage import StoreOptions

        other = otherwise or Storage()
        return StoreOptions(
            self.profile or other.profile,
            self.endpoint_url or other.endpoint_url,
            self.region or other.region,
        )

    def open(self, url: str, *, otherwise: Storage | None = None) -> Store:
        """The store at ``url``."""
        from speechmill.storage import open_store

        return open_store(url, self.options(otherwise))


@dataclass(frozen=True, slots=True)
class ReadStorage(Storage):
    """How to reach a store that is only read: it may be another's."""

    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous", help="Read without keys, by unsigned requests: for public buckets."
        ),
    ] = False
    request_payer: Annotated[
        bool,
        typer.Option(
            "--request-payer", help="Agree to pay for requests: for buckets whose requester pays."
        ),
    ] = False

    def options(self, otherwise: Storage | None = None) -> StoreOptions:
        """See ``Storage.options``. Another place is not read in these ways."""
        reached = Storage.options(self, otherwise)
        return replace(reached, anonymous=self.anonymous, request_payer=self.request_payer)


@dataclass(frozen=True, slots=True)
class Differing:
    """Marks a ``Storage`` of a second place: its flags begin with ``prefix``, and say that they
    are for ``place``, where it differs from ``other``'s."""

    prefix: str
    place: str
    other: str
    names: tuple[str, ...] = ("profile", "endpoint_url", "region")

    def flag(self, name: str) -> inspect.Parameter:
        """The flag of one field."""
        if what := _OF_READING.get(name):
            flag = f"--{self.prefix}-{name.replace('_', '-')}"
            option = typer.Option(flag, help=what.format(self.place))
            return _keyword(f"{self.prefix}_{name}", False, Annotated[bool, option])
        what = name.partition("_")[0].capitalize()
        help_text = f"{what} of {self.place}, where it differs from {self.other}'s."
        return _keyword(
            f"{self.prefix}_{name}", None, Annotated[str | None, typer.Option(help=help_text)]
        )


_OF_READING = {
    "anonymous": "Read {} without keys, by unsigned requests: for public buckets.",
    "request_payer": "Agree to pay for requests to {}: for buckets whose requester pays.",
}

OutStorage = Annotated[Storage, Differing("out", "OUT", "SINK", ("profile", "endpoint_url"))]


def _flag_of(model: type[Options], name: str) -> inspect.Parameter:
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
    return _keyword(name, None, Annotated[of_type | None, option])  # type: ignore[operator]


def _keyword(name: str, default: Any, of_type: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=of_type
    )


def _named(
    run: Callable[..., None], parameters: Sequence[inspect.Parameter], command: Callable[..., None]
) -> Callable[..., None]:
    """A function with these parameters, as typer reads them, and the name and help of a command."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


Flags = tuple[list[inspect.Parameter], Callable[[Mapping[str, Any]], Any]]
"""Flags, and what makes a value of what was given for them."""


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are option models have become a flag for each field.

    An option model is a dataclass whose fields are annotated as typer has it, or are option models
    themselves; or one of a job's (``Options``), of which only what was given is handed on. Other
    parameters stay as they are.
    """
    hints = get_type_hints(command, include_extras=True)
    given_as = inspect.signature(command).parameters
    flags, run = _together(
        command, {name: _flags_of(name, hints[name], p.default) for name, p in given_as.items()}
    )
    return _named(lambda **given: run(given), flags, command)


def _flags_of(name: str, hint: Any, default: Any) -> Flags:
    """What stands for a parameter."""
    model, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if isinstance(model, type) and issubclass(model, Options):
        return _together(
            lambda **values: model(**{n: v for n, v in values.items() if v is not None}),
            {field: _alone(_flag_of(model, field)) for field in model.model_fields},
        )
    if not (isinstance(model, type) and is_dataclass(model)):
        return _alone(_keyword(name, default, hint))
    if differing := next((mark for mark in marks if isinstance(mark, Differing)), None):
        return _together(model, {f: _alone(differing.flag(f)) for f in differing.names})
    hints = get_type_hints(model, include_extras=True)
    needed = inspect.Parameter.empty
    defaults = {f.name: needed if f.default is MISSING else f.default for f in fields(model)}
    return _together(model, {f: _flags_of(f, hints[f], defaults[f]) for f in defaults})


def _alone(flag: inspect.Parameter) -> Flags:
    return [flag], itemgetter(flag.name)


def _together(make: Callable[..., Any], parts: Mapping[str, Flags]) -> Flags:
    """The flags of all parts, and ``make`` of their values, by name."""
    flags = [flag for some, _ in parts.values() for flag in some]
    return flags, lambda given: make(**{n: value_of(given) for n, (_, value_of) in parts.items()})


def with_config(
    command: Callable[[Path | None, dict[str, Any]], None],
    arguments: Sequence[tuple[type[Options], str]],
    flags: Sequence[tuple[type[Options], str]],
) -> Callable[..., None]:
    """A command with these fields of models as arguments and flags, and ``--config``.

    It is called with the job file and what was given, by the fields' names.
    """

    def run(**given: Any) -> None:
        config = given.pop("config")
        command(config, {name: value for name, value in given.items() if value not in (None, [])})

    def argument(model: type[Options], name: str) -> inspect.Parameter:
        details = typer.Argument(metavar=name.upper(), help=described(model, name))
        return _keyword(name, None, Annotated[str | None, details])

    config = typer.Option(help="A TOML file with any of these options; flags win.")
    parameters = [
        *(argument(model, name) for model, name in arguments),
        _keyword("config", None, Annotated[Path | None, config]),
        *(_flag_of(model, name) for model, name in flags),
    ]
    return _named(run, parameters, command)
