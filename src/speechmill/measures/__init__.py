"""Measures by name. Adding one is one file and one line in ``MEASURES``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Final

from speechmill.errors import JobError, did_you_mean
from speechmill.measures.base import Measure

__all__ = ["MEASURES", "open_measures"]


def _lazily(module: str, of_class: str) -> Callable[[], Measure]:
    """A function that imports a class of this package, and makes one."""

    def opened() -> Measure:
        made: Measure = getattr(import_module(f"{__name__}.{module}"), of_class)()
        return made

    return opened


MEASURES: Final = MappingProxyType(
    {
        "level": _lazily("level", "LevelMeasure"),
        "fake": _lazily("fake", "FakeMeasure"),
    }
)
"""Name → a function that imports the measure's class and makes one."""


def open_measures(names: Sequence[str]) -> tuple[Measure, ...]:
    """Open the measures of these names, in their order; a name given twice counts once.

    Raises:
        JobError: there is no such measure.
        MissingExtraError: a measure needs a library that is not installed.
        ModelError: its weights cannot be found or read.
    """
    opened = []
    for name in dict.fromkeys(names):
        if name not in MEASURES:
            raise JobError(
                f"there is no measure {name!r}{did_you_mean(name, MEASURES)} "
                f"there are: {', '.join(sorted(MEASURES))}"
            )
        opened.append(MEASURES[name]())
    return tuple(opened)
