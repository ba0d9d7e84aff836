"""Tokenizers by name. Adding one is one file and one line in ``TOKENIZERS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError, did_you_mean
from speechmill.tokenizers.base import Tokenizer

__all__ = ["TOKENIZERS", "open_tokenizer"]

Option = int | float | str | bool


def _lazily(module: str, of_class: str) -> Callable[[], Callable[..., Tokenizer]]:
    """A function that imports a class of this package, and returns it."""

    def imported() -> Callable[..., Tokenizer]:
        found: Callable[..., Tokenizer] = getattr(import_module(f"{__name__}.{module}"), of_class)
        return found

    return imported


TOKENIZERS: Final[Mapping[str, Callable[[], Callable[..., Tokenizer]]]] = MappingProxyType(
    {
        "mfcc": _lazily("mfcc", "MfccTokenizer"),
        "encodec": _lazily("encodec", "EncodecTokenizer"),
        "dac": _lazily("dac", "DacTokenizer"),
        "mimi": _lazily("mimi", "MimiTokenizer"),
        "xcodec": _lazily("xcodec", "XcodecTokenizer"),
        "snac": _lazily("snac", "SnacTokenizer"),
        "units": _lazily("units", "UnitsTokenizer"),
        "fake": _lazily("fake", "FakeTokenizer"),
    }
)
"""Name → a function that imports the tokenizer's class and returns it."""


def open_tokenizer(spec: str, options: Mapping[str, Option], *, device: str = "auto") -> Tokenizer:
    """Open the tokenizer that ``spec`` names: ``NAME`` or ``NAME:FOLDER_OR_HUB_ID``.

    Args:
        spec: such as ``mfcc``. What follows the colon says which model, where the tokenizer has
            one.
        options: the tokenizer's own options by name, such as ``{"n_mfcc": 40}``.
        device: auto, cpu, cuda or cuda:1, for tokenizers that have a model.

    Raises:
        JobError: no such tokenizer, option or device, or a value of the wrong type or out of range.
        MissingExtraError: the tokenizer needs a library that is not installed.
        ModelError: its weights cannot be found or read.
    """
    name, _, model = spec.partition(":")
    if name not in TOKENIZERS:
        raise JobError(f"there is no tokenizer {name!r}{_hint(name, TOKENIZERS)}")
    factory = TOKENIZERS[name]()
    takes = inspect.signature(factory, eval_str=True).parameters
    parameters = {name: takes[name] for name in takes if name not in ("model", "device")}
    if model and "model" not in takes:
        raise JobError(f"the tokenizer {name!r} has no models to choose from: write {name!r} only")
    checked: dict[str, Option] = {"model": model} if model else {}
    for option, value in options.items():
        if option not in parameters:
            raise JobError(f"{name} has no option {option!r}{_hint(option, parameters)}")
        checked[option] = _checked(name, option, value, parameters[option].annotation)
    return factory(**checked, **({"device": device} if "device" in takes else {}))


def _checked(name: str, option: str, value: Option, kind: object) -> Option:
    """The value as the option's own type, or JobError."""
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is not kind:
        raise JobError(f"{name}: {option} must be of type {kind.__name__}, not {value!r}")
    return value


def _hint(word: str, choices: Mapping[str, object]) -> str:
    """The end of the message: the nearest name, if any, and all names."""
    return f"{did_you_mean(word, choices)} there are: {', '.join(sorted(choices)) or 'none'}"
