"""Files of one kind that were written one behind the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.structure import Structure, joined
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError, NotAudioError, TruncatedError

__all__ = ["InspectOne", "inspect_all"]

InspectOne = Callable[[Octets, int, Meter], tuple[Structure, int | None]]
"""(data, start, meter) -> a file's structure, and where another one starts behind it."""


def inspect_all(inspect_one: InspectOne, data: Octets, start: int, meter: Meter) -> Structure:
    """Describe a file and those behind it; one that holds no sound is ``trailing_data``.

    Raises what ``inspect_one`` raises of the first.
    """
    structure, behind = inspect_one(data, start, meter)
    found = [structure]
    flags: tuple[str, ...] = ()
    while behind is not None:
        meter.step()
        at, behind = behind, None
        flags = ("trailing_data",)
        with suppress(EmptyAudioError, NotAudioError, TruncatedError, DamagedError):
            structure, behind = inspect_one(data, at, meter)
            found.append(structure)
            flags = ()
    return joined(found, flags)
