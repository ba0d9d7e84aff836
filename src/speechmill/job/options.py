"""Options: what users may tell a command by flags or a job file, checked."""

from __future__ import annotations

import inspect
import tomllib
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from speechmill.errors import JobError, did_you_mean

__all__ = ["Name", "Options", "Texts", "panel_of", "parse_options", "parsed"]


class Options(BaseModel):
    """Options that belong together, validated and frozen. Wrong values raise ``JobError``.

    Every field is a flag and a key of the job file, of the same name (with ``-`` for ``_`` in
    flags). ``panel`` is the heading of ``--help`` under which a class's own fields stand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    panel: ClassVar[str] = "The run"

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if not _is_text(value):
                raise JobError(
                    f"{name}: holds bytes that are not UTF-8, which no row or log could name"
                )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise JobError(_explain(error, type(self))) from None


def _is_text(value: object) -> bool:
    """Whether all text in a value can be written down: a path may hold bytes that are no text."""
    waiting = [value]  # no recursion: a job file may be thousands of brackets deep
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return False
    return True


def panel_of(model: type[BaseModel], name: str) -> str:
    """The heading of ``--help`` under which a field stands: its own (``panel`` of
    ``json_schema_extra``), or else that of the class that states it."""
    extra = model.model_fields[name].json_schema_extra
    if isinstance(extra, dict) and "panel" in extra:
        return str(extra["panel"])
    stating = (c for c in model.__mro__ if name in inspect.get_annotations(c))
    return next((c.panel for c in stating if issubclass(c, Options)), Options.panel)


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""Texts, of which one may be given alone, or a list."""

Name = Annotated[str, AfterValidator(_not_empty)]
"""A text that is not empty."""


def parse_options(value: object, example: str) -> object:
    """Options by name. The flag's form, a list of NAME=VALUE, is taken, too.

    Raises:
        ValueError: one of them has no name or no value; ``example`` shows how to write it. The text
            itself is not shown: it may be a password.
    """
    if not isinstance(value, list):
        return value
    options: dict[str, Any] = {}
    for text in value:
        name, equals, setting = str(text).partition("=")
        if not (equals and name):
            raise ValueError(f"one has no name or no '=': write NAME=VALUE, such as {example}")
        options[name] = parsed(setting)
    return options


def parsed(setting: str) -> Any:
    """What a flag's VALUE means as TOML; else it is text."""
    try:
        return tomllib.loads(f"value = {setting}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):  # which thousands of brackets raise
        return setting


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's findings on a model's values as one line each."""
    lines, seen = [], set()
    for found in error.errors():
        if found["loc"] and found["loc"][0] in seen:
            continue  # what follows from the first
        seen.add(next(iter(found["loc"]), None))
        key = ".".join(str(part) for part in found["loc"][:3]) or "job"
        text = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            text = f"there is no such key{did_you_mean(key, model.model_fields).rstrip(';')}"
        elif found["type"] == "missing":
            text = "is missing: give it as an argument, or as a key of the job file"
        elif found["type"] == "literal_error" or isinstance(found["input"], int | float):
            text = f"{text} (it is {found['input']!r})"  # other values may hold a secret
        lines.append(f"{key}: {text}")
    return "\n".join(lines)
