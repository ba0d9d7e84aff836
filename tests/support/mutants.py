"""Good bytes that have gone wrong, as disks, networks and people who mean harm do it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = ["mutant", "mutated_json"]

HEADER_BYTES = 200
"""Most headers, and the tables behind them, are within these."""
_EXTREMES = (0, 1, -1, 0x7F, 0x80, 0xFF)
_TEXTS = (
    *("", "\0", "..", "../x", "/etc/passwd", "a/b", "\ud800", "\x1b[2J", "x" * 5_000, "1e999"),
    *("s3://b/x", "memory://x", "K:S@b", "%FF%00", "ObjectCreated:Put", "p00/p00_001.wav"),
)
_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, float("inf"), float("nan"))


def mutant(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """The data after one to four changes; ``others`` are what it may be joined with."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice(_CHANGES)(changed, draw, others)
    return bytes(changed)


def _place(data: bytearray, draw: Random) -> int:
    """Somewhere: half of the time within the header."""
    return draw.randrange(1 + min(len(data), draw.choice((HEADER_BYTES, len(data)))))


def _block(data: bytearray, draw: Random) -> slice:
    start = _place(data, draw)
    return slice(start, start + draw.choice((1, 4, 40, 400, 1 + len(data) // 3)))


def _flip(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    for _ in range(draw.choice((1, 2, 20))):
        if data:
            data[min(_place(data, draw), len(data) - 1)] ^= 1 << draw.randrange(8)


def _cut_end(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    del data[_place(data, draw) :]


def _cut_beginning(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    del data[: _place(data, draw)]


def _remove(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    del data[_block(data, draw)]


def _insert(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    at, count = _place(data, draw), draw.choice((1, 4, 100, 5_000))
    data[at:at] = draw.choice((bytes(count), draw.randbytes(count)))


def _overwrite(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    where = _block(data, draw)
    count = len(data[where])
    data[where] = draw.choice((bytes(count), b"\xff" * count, draw.randbytes(count)))


def _duplicate(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    where = _block(data, draw)
    at = draw.choice((where.start, _place(data, draw)))
    data[at:at] = data[where] * draw.choice((1, 1, 30))


def _set_field(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    """Set a number of 1 to 8 bytes to one that programs stumble over."""
    for _ in range(draw.choice((1, 1, 3))):
        size = draw.choice((1, 2, 4, 4, 8))
        value = draw.choice(_EXTREMES)
        if abs(value) > 1:  # 0x7F0000…, 0x7FFFFF…, and likewise
            value = (value + 1 << 8 * (size - 1)) - draw.randrange(2)
        at = _place(data, draw)
        field = (value % (1 << 8 * size)).to_bytes(size, "big")
        data[at : at + size] = field[:: draw.choice((1, -1))]


def _join(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    other = draw.choice(others) if others else bytes(data)
    kept = draw.choice((len(data), _place(data, draw)))
    data[kept:] = other[draw.choice((0, 0, draw.randrange(1 + len(other)))) :]


_CHANGES: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _set_field, _set_field, _cut_end, _cut_beginning, _remove, _insert),
    *(_overwrite, _duplicate, _join),
)


def mutated_json(told: Any, draw: Random) -> Any:
    """A JSON value with something in it that is not meant to be there, or is missing."""
    if isinstance(told, dict) and told and draw.random() < 0.9:
        name = draw.choice(list(told))
        if draw.random() < 0.15:
            return {key: value for key, value in told.items() if key != name}
        if draw.random() < 0.1:
            return {**told, draw.choice((*_TEXTS, *told)): _odd(draw)}
        return {**told, name: mutated_json(told[name], draw)}
    if isinstance(told, list) and told and draw.random() < 0.9:
        at = draw.randrange(len(told))
        if draw.random() < 0.2:
            return told * draw.choice((0, 2, 50))
        return [*told[:at], mutated_json(told[at], draw), *told[at + 1 :]]
    if isinstance(told, str) and told and draw.random() < 0.5:
        inner = mutant(told.encode("utf-8", "surrogatepass"), draw)
        return inner.decode("utf-8", "replace")
    return _odd(draw)


def _odd(draw: Random) -> Any:
    """Any value but a sensible one."""
    kind = draw.randrange(5)
    if kind == 0:
        return draw.choice((None, True, False, [], {}, [[]], {"": {}}))
    if kind == 1:
        return draw.choice(_NUMBERS)
    if kind == 2:
        return json.loads("[" * 200 + "]" * 200)
    return draw.choice(_TEXTS)
