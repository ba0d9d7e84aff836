"""NIST SPHERE (TIMIT and other corpora of the LDC): compare its sample count with what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from speechmill.audio.formats.octets import Octets, starts_with
from speechmill.audio.formats.plain import Stretch, plain_structure
from speechmill.audio.formats.reconcile import SampleHeader, settle, smoother_order
from speechmill.audio.formats.sample_format import Encoding, Order
from speechmill.audio.formats.sizes import Extent, rest_flags
from speechmill.audio.formats.structure import Piece, Structure
from speechmill.audio.limits import Meter
from speechmill.errors import DamagedError, EmptyAudioError

__all__ = ["SPHERE_MAGIC", "inspect_sph"]

SPHERE_MAGIC = b"NIST_1A"
_MAX_HEADER = 1 << 20  # bytes of a header, whatever it states; the usual one has 1,024
_SHORTEN = b"ajkg"
_PLAIN: Final[dict[bytes, Encoding]] = {
    b"pcm": "signed",
    b"ulaw": "ulaw",
    b"mu-law": "ulaw",
    b"mulaw": "ulaw",
    b"alaw": "alaw",
}


def inspect_sph(data: Octets, start: int, meter: Meter) -> tuple[Structure, int | None]:
    """Describe a SPHERE file at ``start``, and find where another one starts behind it."""
    size, fields = _header(data, start)
    first, present = start + size, len(data) - start - size
    if present <= 0:
        raise EmptyAudioError("header only: the SPHERE file ends with its header")
    channels, rate, count = (
        _number(fields, name) for name in (b"channel_count", b"sample_rate", b"sample_count")
    )
    coding = fields.get(b"sample_coding", b"pcm").lower()
    if coding not in _PLAIN:
        structure = Structure(
            "SPHERE",
            "nistsphere",
            (Piece(start, len(data)),),
            count / rate if rate and count else None,
            least_samples=count or None,
            flags=() if count else ("unknown_length",),
        )
        return structure, None
    if fields.get(b"channels_interleaved", b"TRUE").upper() == b"FALSE":
        raise DamagedError("the SPHERE file's channels are not interleaved, which is not read")
    if starts_with(data, _SHORTEN, first):
        raise DamagedError(
            f"the SPHERE file's header says {coding.decode()}, but its samples are those of shorten"
        )
    width = _number(fields, b"sample_n_bytes")
    end = min(len(data), first + count * channels * width) if count else len(data)
    header = SampleHeader(
        "SPHERE",
        _PLAIN[coding],
        _order(data, (first, end), fields, width) if _PLAIN[coding] == "signed" else "<",
        rate,
        channels,
        8 * width,
        _number(fields, b"sample_sig_bits") if _PLAIN[coding] == "signed" else 0,
        lower_is_odd=False,
    )
    form, odd = settle(data, (first, end), header, meter)
    block = form.block
    if count * block > present and channels > 1 and count * form.width == present:
        count, odd = count // channels, (*odd, "wrong_length")  # of all channels together
    extent = Extent(start, first, count * block if count else None, present)
    behind = extent.end if starts_with(data, SPHERE_MAGIC, extent.end) else None
    flags = (*odd, *(rest_flags(data, extent.end) if behind is None else ()))
    return plain_structure("SPHERE", "nistsphere", [Stretch(extent, form)], flags), behind


def _header(data: Octets, start: int) -> tuple[int, dict[bytes, bytes]]:
    """Read the size of the header, and its fields."""
    lines = data[start : start + 1024].split(b"\n", 2)
    size = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 1024
    fields = {}
    for line in data[start : start + min(size, _MAX_HEADER)].split(b"\n")[2:]:
        if line.strip() == b"end_head":
            break
        name, _, value = line.partition(b" -")
        fields[name.strip()] = value.partition(b" ")[2].strip()
    return size, fields


def _number(fields: Mapping[bytes, bytes], name: bytes) -> int:
    value = fields.get(name, b"")
    return int(value) if value.isdigit() and len(value) < 16 else 0


def _order(data: Octets, span: tuple[int, int], fields: Mapping[bytes, bytes], width: int) -> Order:
    """Read the order of a sample's bytes: 01 or 0123 for the least significant one first.

    Raises DamagedError where it is not that of so many bytes.
    """
    stated = fields.get(b"sample_byte_format", b"")
    if not 1 < width <= 8:
        return "<"
    if not stated:
        order = smoother_order(data, span, width, max(1, _number(fields, b"channel_count")))
        if order is None:
            raise DamagedError("the SPHERE file's header does not state sample_byte_format")
        return order
    rising = bytes(range(0x30, 0x30 + width))
    if stated in {b"01", rising}:
        return "<"
    if stated in {b"10", rising[::-1]}:
        return ">"
    raise DamagedError(
        f"the fields of the SPHERE file's header disagree: sample_n_bytes is {width}, and "
        f"sample_byte_format {stated.decode('latin-1')}"
    )
