"""Find the form of plain samples where the fields of a header disagree about it.

Readers choose one field and believe it: the others are then wrong in silence, and the sound is
noise. Here the samples themselves have a say: integers of fewer bits than their bytes hold leave
bits empty, and few bytes that are no floats look like such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechmill.audio.formats.octets import Octets, Span
from speechmill.audio.formats.sample_format import Encoding, Order, SampleFormat, integers
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError

__all__ = ["SampleHeader", "settle", "smoother_order"]

_LOOK_BYTES = 840 << 10  # at a time; a multiple of all widths up to 8
_WIDEST = 8  # bytes of a sample
_FLOAT_WIDTHS = (4, 8)
# Peaks that floats have, also those that count in steps of 32-bit integers. Integers that are taken
# for floats are infinite or tiny, and large ones are alike.
_FLOAT_PEAKS = (2.0**-20, 2.0**31)
# Sound is so many times louder than its quietest sample, and not so many times as loud on one side
# of zero as on the other.
_FLOAT_RANGE = 16

# The differences of neighbours have twice the power that noise has itself, and much less of that of
# speech; noise stays noise in either byte order. The order is looked for in some places of a file.
_ORDERS: tuple[Order, ...] = ("<", ">")
_SMOOTH = 0.25  # nothing is so smooth by chance
_ROUGHER = 8.0
_LOOKS, _LOOK_FRAMES = 8, 2048

_Fill = Literal["upper", "lower", "all", "silent"]
"""Which of their bits integers fill, those below the significant ones being nothing."""


@dataclass(frozen=True, slots=True)
class SampleHeader:
    """What a header says of its plain samples; 0 where it does not say.

    ``block`` is None where this kind of header has no such field.

    ``bits`` are those of a sample, ``valid_bits`` the significant ones of them, ``block`` the bytes
    of one sample of each channel. ``unsigned_bytes``: integers of one byte are. ``lower_is_odd``:
    this kind of header wants integers of fewer bits in the upper ones.
    """

    name: str
    encoding: Encoding
    order: Order
    sample_rate: int
    channels: int
    bits: int
    valid_bits: int = 0
    block: int | None = None
    byte_rate: int = 0
    unsigned_bytes: bool = False
    lower_is_odd: bool = True

    def form(self, width: int, shift: int = 0, encoding: Encoding | None = None) -> SampleFormat:
        """The form with a width, and what else was found out."""
        encoding = encoding or self.encoding
        if encoding == "signed" and width == 1 and self.unsigned_bytes:
            encoding = "unsigned"
        return SampleFormat(self.sample_rate, self.channels, encoding, width, self.order, shift)

    def moves(self, width: int) -> bool:
        """Whether so many bytes a sample are what the bytes per second say."""
        return self.byte_rate == self.sample_rate * self.channels * width

    def disagree(self) -> DamagedError:
        """The error that says which fields do not fit together."""
        channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
        parts = [channels, f"{self.bits} bits a sample"]
        if self.valid_bits:
            parts.append(f"{self.valid_bits} valid bits")
        if self.block is not None:
            parts.append(f"{self.block} bytes a block")
        if self.byte_rate:
            parts.append(f"{self.byte_rate} bytes a second at {self.sample_rate} Hz")
        return DamagedError(
            f"the fields of the {self.name} file's header disagree: {', '.join(parts)}; and its "
            "samples do not tell which of them are right"
        )


def settle(
    data: Octets, span: Span, header: SampleHeader, meter: Meter
) -> tuple[SampleFormat, tuple[str, ...]]:
    """Find the form of the samples in ``span``, and the flag ``wrong_header`` where a field of the
    header cannot be right.

    Raises DamagedError where it remains unknown.
    """
    if not header.channels:
        raise DamagedError(f"the header of the {header.name} file says that it has no channels")
    by_bits = -(-header.bits // 8) if header.bits <= 8 * _WIDEST else 0
    by_block, rest = divmod(header.block or 0, header.channels)
    by_block = 0 if rest or by_block > _WIDEST else by_block
    if header.encoding in {"alaw", "ulaw"}:
        form = _of_bytes(header)
    elif header.encoding == "float":
        form = header.form(_float_width(data, span, header, (by_bits, by_block), meter))
    else:
        form = _of_integers(data, span, header, (by_bits, by_block), meter)
    if form.encoding == "signed" and form.width > 1:
        order = smoother_order(data, span, form.width, header.channels, header.order)
        if order is not None and order != header.order:
            form, _ = settle(data, span, replace(header, order=order), meter)
    wrong = (form.encoding == "float") != (header.encoding == "float")
    wrong |= form.order != header.order
    wrong |= form.shift > 0 and header.lower_is_odd
    wrong |= not by_bits and form.encoding not in {"alaw", "ulaw"}
    wrong |= form.encoding == "float" and header.bits != 8 * form.width
    wrong |= header.block not in {None, form.block}
    wrong |= header.byte_rate not in {0, header.sample_rate * form.block}
    return form, ("wrong_header",) * wrong


def _of_bytes(header: SampleHeader) -> SampleFormat:
    """A-law and µ-law have a byte a sample, whatever number of bits writers state."""
    if header.block not in {None, 0, header.channels} and not header.moves(1):
        raise header.disagree()
    return header.form(1)


def _float_width(
    data: Octets, span: Span, header: SampleHeader, widths: tuple[int, int], meter: Meter
) -> int:
    """Bytes of a float: as bits and block say, else as one of them and the bytes a second do, where
    the samples look like that."""
    by_bits, by_block = widths
    if (
        by_bits in _FLOAT_WIDTHS
        and by_block in {0, by_bits}
        and not (header.block and not by_block)
    ):
        return by_bits
    for width in widths:
        if width not in _FLOAT_WIDTHS or not header.moves(width):
            continue
        if width == by_block and by_bits in _FLOAT_WIDTHS:
            continue  # floats look like doubles as well
        if _look_like_floats(data, span, width, header.order, meter):
            return width
    raise header.disagree()


def _of_integers(
    data: Octets, span: Span, header: SampleHeader, widths: tuple[int, int], meter: Meter
) -> SampleFormat:
    """Find the bytes of an integer, and which of its bits are filled, by all witnesses."""
    by_bits, by_block = widths
    width = by_block or by_bits
    if width == _FLOAT_WIDTHS[0] and _look_like_floats(data, span, width, header.order, meter):
        return header.form(width, encoding="float")
    bits = min(header.bits, header.valid_bits or header.bits)
    if by_bits and by_block in {0, by_bits}:
        if by_block == 0 and header.block and not header.moves(by_bits):
            raise header.disagree()
        width = by_bits
    elif by_bits and by_block > by_bits:
        fill = _filled_bits(data, span, by_block, bits, header.order, meter)
        fits = fill in {"upper", "lower"}
        if fill == "silent":
            fits = header.moves(by_block) or not header.byte_rate
        if not fits and not header.moves(by_bits):
            raise header.disagree()
        width = by_block if fits else by_bits
    elif by_bits and header.moves(by_bits):
        width = by_bits
    elif by_block and not by_bits and header.moves(by_block):
        return header.form(by_block)
    else:
        raise header.disagree()
    shift = 0
    if width > 1 and 0 < bits < 8 * width:
        fill = _filled_bits(data, span, width, bits, header.order, meter)
        shift = 8 * width - bits if fill == "lower" else 0
    return header.form(width, shift)


def _looks(data: Octets, span: Span, width: int, meter: Meter) -> Iterator[bytes]:
    """Yield whole samples, some at a time."""
    end = span[1] - (span[1] - span[0]) % width
    for at in range(span[0], end, _LOOK_BYTES):
        meter.check_time()
        yield data[at : min(end, at + _LOOK_BYTES)]


def _filled_bits(
    data: Octets, span: Span, width: int, bits: int, order: Order, meter: Meter
) -> _Fill:
    """Whether integers of ``width`` bytes leave all but the upper or lower ``bits`` empty."""
    empty, low, high = 0, 0, 0
    for octets in _looks(data, span, width, meter):
        samples = integers(octets, width, order)
        spare = 8 * (samples.dtype.itemsize - width)
        empty |= int(np.bitwise_or.reduce(samples)) >> spare
        low = min(low, int(samples.min()) >> spare)
        high = max(high, int(samples.max()) >> spare)
    if low == high == 0:
        return "silent"
    if not empty & (1 << 8 * width - bits) - 1:
        return "upper"
    top = 1 << bits - 1
    return "lower" if -top <= low and high < top else "all"


def _look_like_floats(data: Octets, span: Span, width: int, order: Order, meter: Meter) -> bool:
    """Whether bytes that are taken for floats are finite, as loud as sound is, and also quieter, on
    either side of zero."""
    peaks, quietest = [0.0, 0.0], [math.inf, math.inf]
    for octets in _looks(data, span, width, meter):
        samples = np.frombuffer(octets, f"{order}f{width}")
        if not np.isfinite(samples).all():
            return False
        for side, sign in enumerate((1, -1)):
            magnitudes = sign * samples
            peaks[side] = max(peaks[side], float(magnitudes.max()))
            quiet = magnitudes.min(initial=quietest[side], where=magnitudes > 0)
            quietest[side] = min(quietest[side], float(quiet))
    least, most = _FLOAT_PEAKS
    return (
        least <= min(peaks)
        and max(peaks) <= min(most, _FLOAT_RANGE * min(peaks))
        and all(_FLOAT_RANGE * quiet < peak for quiet, peak in zip(quietest, peaks, strict=True))
    )


def smoother_order(
    data: Octets, span: Span, width: int, channels: int, stated: Order | None = None
) -> Order | None:
    """The byte order in which neighbouring integers differ clearly less, else the ``stated`` one.

    In the wrong order the bytes that hold least come first: whatever was put in is noise then.
    """
    rough = {}
    for order in (stated, *_ORDERS):
        if order is None or order in rough:
            continue
        rough[order] = _roughness(data, span, width, channels, order)
        if order == stated and rough[order] < _SMOOTH:
            return stated
    low, high = sorted(_ORDERS, key=rough.__getitem__)
    return low if rough[low] * _ROUGHER < rough[high] else stated


def _roughness(data: Octets, span: Span, width: int, channels: int, order: Order) -> float:
    """The power of the differences of neighbouring integers, as a share of that of noise as loud as
    they are; 0 for silence, and where there are few."""
    block = width * channels
    frames = (span[1] - span[0]) // block
    if frames < _LOOK_FRAMES // 8:
        return 0.0
    step = max(_LOOK_FRAMES, frames // _LOOKS)
    differences, power = 0.0, 0.0
    for first in range(0, frames, step):
        at = span[0] + first * block
        octets = data[at : at + min(_LOOK_FRAMES, frames - first) * block]
        samples = integers(octets, width, order).reshape(-1, channels).astype(np.float64)
        samples -= samples.mean(axis=0)
        differences += float(np.square(np.diff(samples, axis=0)).sum())
        power += float(np.square(samples).sum())
    return differences / power / 2 if power else 0.0
