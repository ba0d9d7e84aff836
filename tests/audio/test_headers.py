"""Headers of every kind, right and odd: what was put in comes out, or a failure says why."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.audio import decode
from speechmill.audio.decoding import Decoded
from speechmill.errors import AudioError, DamagedError, NotAudioError
from tests.support.audio_files import speech
from tests.support.crafted_headers import (
    Order,
    aiff,
    au,
    caf,
    chunk,
    fmt,
    packed,
    sphere,
    w64,
    wav,
)

SOUND = speech(0.1, channels=2)
BITS = (8, 12, 14, 16, 18, 20, 24, 32)
Sound = NDArray[Any]


def assert_is(decoded: Decoded, sound: Sound, bits: int, flags: tuple[str, ...] = ()) -> None:
    """The sound that was put in, at its own level, to the last of its bits."""
    assert decoded.flags == flags
    assert decoded.sample_rate == 16000
    assert decoded.channels == len(sound)
    expected = sound.mean(axis=0)
    np.testing.assert_allclose(
        decoded.waveform.samples, expected, rtol=0, atol=2.0 ** -min(bits - 1, 22)
    )


def riff(magic: bytes, samples: bytes, body: bytes) -> bytes:
    order: Order = ">" if magic == b"RIFX" else "<"
    chunks = chunk(b"fmt ", body, order=order), chunk(b"data", samples, order=order)
    return wav(*chunks, magic=magic)


def integer_files(lower: bool) -> Iterator[tuple[str, int, int, bytes]]:
    """Files of integers of every width, in ``lower`` or upper bits: name, channels, bits, data."""
    for width, bits, channels in product((1, 2, 3, 4), BITS, (1, 2)):
        if bits > 8 * width or (lower and (bits == 8 * width or width == 1)):
            continue
        told: dict[str, Any] = {"width": width, "bits": bits, "lower": lower}
        sound = SOUND[:channels]
        small = packed(sound, **told, unsigned=width == 1)
        signed, big = packed(sound, **told), packed(sound, **told, order=">")
        block, whole = width * channels, 8 * width
        for name, stated, valid in (
            ("bits", bits, None),
            ("valid", whole, bits),
            ("both", bits, bits),
        ):
            body = fmt(stated, block, channels=channels, valid_bits=valid)
            for magic in (b"RIFF", b"RF64", b"BW64"):
                yield (
                    f"{magic!r} {name} {bits} in {width}",
                    channels,
                    bits,
                    riff(magic, small, body),
                )
            yield f"W64 {name} {bits} in {width}", channels, bits, w64(body, small)
            body = fmt(stated, block, channels=channels, valid_bits=valid, order=">")
            other = small if width == 1 else big
            yield f"RIFX {name} {bits} in {width}", channels, bits, riff(b"RIFX", other, body)
        described: dict[str, Any] = {"block": block, "channels": channels}
        yield f"CAF {bits} in {width}", channels, bits, caf(big, bits, **described)
        yield f"CAF {bits} in {width} <", channels, bits, caf(signed, bits, flags=2, **described)
        if -(-bits // 8) == width:
            yield f"AIFF {bits} in {width}", channels, bits, aiff(big, bits, channels=channels)
            for kind in (b"NONE", b"twos", b"sowt", b"raw "):
                data = signed if kind == b"sowt" else big
                data = packed(sound, **told, order=">", unsigned=True) if kind == b"raw " else data
                if kind == b"raw " and lower:
                    continue
                data = aiff(data, bits, kind=kind, channels=channels)
                yield f"AIFF-C {kind!r} {bits} in {width}", channels, bits, data
        fields: dict[str, Any] = {"channel_count": channels, "sample_n_bytes": width}
        for order, data in (("0123"[:width], signed), ("3210"[4 - width :], big)):
            fields |= {"sample_byte_format": order, "sample_sig_bits": bits}
            yield f"SPHERE {order} {bits} in {width}", channels, bits, sphere(data, **fields)


@pytest.mark.parametrize("lower", [False, True])
def test_integers_of_any_width_come_out_as_they_were_put_in(lower: bool) -> None:
    count = 0
    for name, channels, bits, data in integer_files(lower):
        flags = ("wrong_header",) if lower and not name.startswith("SPHERE") else ()
        try:
            assert_is(decode(data), SOUND[:channels], bits, flags)
        except (AudioError, AssertionError) as error:
            raise AssertionError(f"{name}, {channels} channels") from error
        count += 1
    assert count > 300


KINDS: dict[str, Callable[[Sound, int], tuple[bytes, int]]] = {
    # (sound, channels) -> file, bits of its samples
    "AIFF in24": lambda x, n: (aiff(packed(x, 3, 24, order=">"), 24, kind=b"in24", channels=n), 24),
    "AIFF 42ni": lambda x, n: (aiff(packed(x, 3, 24), 24, kind=b"42ni", channels=n), 24),
    "AIFF 42n1": lambda x, n: (aiff(packed(x, 3, 24), 24, kind=b"42n1", channels=n), 24),
    "AIFF in32": lambda x, n: (aiff(packed(x, 4, 32, order=">"), 32, kind=b"in32", channels=n), 32),
    "AIFF 23ni": lambda x, n: (aiff(packed(x, 4, 32), 32, kind=b"23ni", channels=n), 32),
    "AIFF fl32": lambda x, n: (
        aiff(x.T.astype(">f4").tobytes(), 32, kind=b"fl32", channels=n), 32,
    ),
    "AIFF fl32 said to have 16 bits": lambda x, n: (
        aiff(x.T.astype(">f4").tobytes(), 16, kind=b"FL32", channels=n, frames=x.shape[1]), 32,
    ),
    "AIFF fl64": lambda x, n: (
        aiff(x.T.astype(">f8").tobytes(), 64, kind=b"fl64", channels=n), 32,
    ),
    "CAF float": lambda x, n: (
        caf(x.T.astype(">f4").tobytes(), 32, block=4 * n, flags=1, channels=n), 32,
    ),
    "CAF float <": lambda x, n: (
        caf(x.T.astype("<f4").tobytes(), 32, block=4 * n, flags=3, channels=n), 32,
    ),
    "CAF double": lambda x, n: (
        caf(x.T.astype(">f8").tobytes(), 64, block=8 * n, flags=1, channels=n), 32,
    ),
    "AU 8": lambda x, n: (au(packed(x, 1, 8), 2, channels=n), 8),
    "AU 16": lambda x, n: (au(packed(x, 2, 16, order=">"), 3, channels=n), 16),
    "AU 16 <": lambda x, n: (au(packed(x, 2, 16), 3, channels=n, order="<"), 16),
    "AU 24": lambda x, n: (au(packed(x, 3, 24, order=">"), 4, channels=n), 24),
    "AU 32": lambda x, n: (au(packed(x, 4, 32, order=">"), 5, channels=n), 32),
    "AU float": lambda x, n: (au(x.T.astype(">f4").tobytes(), 6, channels=n), 32),
    "AU double": lambda x, n: (au(x.T.astype(">f8").tobytes(), 7, channels=n), 32),
    "WAV float": lambda x, n: (
        riff(b"RIFF", x.T.astype("<f4").tobytes(), fmt(32, 4 * n, tag=3, channels=n)), 32,
    ),
    "WAV float, extensible": lambda x, n: (
        riff(
            b"RIFF",
            x.T.astype("<f4").tobytes(),
            fmt(32, 4 * n, tag=3, channels=n, valid_bits=24),
        ), 32,
    ),
    "RIFX float": lambda x, n: (
        riff(
            b"RIFX",
            x.T.astype(">f4").tobytes(),
            fmt(32, 4 * n, tag=3, channels=n, order=">"),
        ), 32,
    ),
    "W64 double": lambda x, n: (
        w64(fmt(64, 8 * n, tag=3, channels=n), x.T.astype("<f8").tobytes()), 32,
    ),
    "WAV of 64 bits": lambda x, n: (
        riff(b"RIFF", packed(x, 8, 64), fmt(64, 8 * n, channels=n)), 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_samples_come_out_as_they_were_put_in(kind: str, channels: int) -> None:
    data, bits = KINDS[kind](SOUND[:channels], channels)
    assert_is(decode(data), SOUND[:channels], bits)


LAWS = {
    "WAV": lambda law, octets: riff(b"RIFF", octets, fmt(8, 1, tag={"ALAW": 6, "ULAW": 7}[law])),
    "WAV said to have 16 bits": lambda law, octets: riff(
        b"RIFF", octets, fmt(16, 1, tag={"ALAW": 6, "ULAW": 7}[law])
    ),
    "W64": lambda law, octets: w64(fmt(8, 1, tag={"ALAW": 6, "ULAW": 7}[law]), octets),
    "AIFF": lambda law, octets: aiff(
        octets, 16, kind=law.lower().encode(), frames=len(octets)
    ),
    "AU": lambda law, octets: au(octets, {"ALAW": 27, "ULAW": 1}[law]),
    "CAF": lambda law, octets: caf(octets, 8, code=law.lower().encode(), block=1),
    "SPHERE": lambda law, octets: sphere(
        octets, sample_coding=law.lower(), sample_n_bytes=1, sample_byte_format="1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", ["ALAW", "ULAW"])
@pytest.mark.parametrize("container", LAWS)
def test_laws_are_those_of_libsndfile(container: str, law: str) -> None:
    octets = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(octets), dtype="float32", samplerate=8000, channels=1, format="RAW", subtype=law
    )
    np.testing.assert_array_equal(decode(LAWS[container](law, octets)).waveform.samples, expected)


def of_16_bits(**changes: Any) -> bytes:
    """A WAV of 16 bits whose fmt chunk says something else in some fields."""
    told = {"bits": 16, "block": 2 * changes.get("channels", 1), **changes}
    return riff(b"RIFF", packed(SOUND[: told.get("channels", 1)], 2, 16), fmt(**told))


@pytest.mark.parametrize(
    "changes",
    [
        {"block": 4, "byte_rate": 32000},
        {"block": 1, "byte_rate": 32000},
        {"block": 0, "byte_rate": 32000},
        {"block": 2, "channels": 2, "byte_rate": 64000},
        {"block": 8, "channels": 2, "byte_rate": 64000},
        {"byte_rate": 12345},
        {"bits": 0},
    ],
    ids=str,
)
def test_one_wrong_field_is_told_by_the_others(changes: dict[str, int]) -> None:
    sound = SOUND[: changes.get("channels", 1)]
    assert_is(decode(of_16_bits(**changes)), sound, 16, ("wrong_header",))


def test_a_header_without_bytes_a_second_is_none_to_complain_of() -> None:
    assert_is(decode(of_16_bits(byte_rate=0)), SOUND[:1], 16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"block": 4}, "16 bits a sample, 4 bytes a block"),
        ({"block": 1}, "1 bytes a block"),
        ({"block": 2, "channels": 2}, "2 channels, 16 bits a sample, 2 bytes a block"),
        ({"bits": 8}, "8 bits a sample, 2 bytes a block"),
        ({"bits": 24}, "24 bits a sample, 2 bytes a block"),
        ({"block": 3}, "3 bytes a block, 48000 bytes a second at 16000 Hz"),
        ({"bits": 0, "byte_rate": 0}, "0 bits"),
        ({"tag": 3}, "16 bits a sample"),
        ({"tag": 3, "bits": 32}, "32 bits a sample"),
        ({"tag": 6}, "2 bytes a block"),
        ({"channels": 0}, "no channels"),
        ({"sample_rate": 0}, "0 Hz makes no sense"),
    ],
    ids=str,
)
def test_fields_that_disagree_are_named(changes: dict[str, int], text: str) -> None:
    with pytest.raises(DamagedError, match=text):
        decode(of_16_bits(**changes))


def test_what_is_silent_is_as_long_as_most_fields_say() -> None:
    for block, byte_rate, count in ((2, 32000, 1600), (4, 64000, 800), (4, 32000, 1600)):
        data = riff(b"RIFF", bytes(3200), fmt(16, block, byte_rate=byte_rate))
        assert len(decode(data).waveform.samples) == count
    with pytest.raises(DamagedError):
        decode(riff(b"RIFF", bytes(8000), fmt(16, 4, byte_rate=1)))


@pytest.mark.parametrize("scale", [2.0**15, 2.0**23])
def test_floats_that_cool_edit_wrote_as_integers_are_floats(scale: float) -> None:
    samples = (SOUND[0] * scale).astype("<f4").tobytes()
    for body in (fmt(24, 4), fmt(32, 4, extra=b"\x02\x00\x01\x00")):
        decoded = decode(riff(b"RIFF", samples, body))
        assert decoded.flags == ("scaled", "wrong_header")
        assert np.corrcoef(decoded.waveform.samples, SOUND[0])[0, 1] > 0.999


@pytest.mark.parametrize("channels", [1, 2])
def test_floats_that_are_said_to_be_integers_are_floats(channels: int) -> None:
    sound = SOUND[:channels]
    little, big = (sound.T.astype(f"{order}f4").tobytes() for order in "<>")
    told: dict[str, Any] = {"channels": channels}
    for data in (
        riff(b"RIFF", little, fmt(32, 4 * channels, **told)),
        riff(b"RIFF", little, fmt(32, 4 * channels, valid_bits=32, **told)),
        riff(b"RIFX", big, fmt(32, 4 * channels, order=">", **told)),
        caf(big, 32, block=4 * channels, **told),
        aiff(big, 32, **told),
        au(big, 5, **told),
    ):
        assert_is(decode(data), sound, 24, ("wrong_header",))


def test_integers_of_32_bits_that_are_all_large_are_no_floats() -> None:
    square = np.where(np.arange(1600) // 40 % 2, 0.5, -0.5)[None]
    for sound in (square, square * 0.9, np.full((1, 1600), 0.5), np.zeros((1, 1600))):
        assert_is(decode(riff(b"RIFF", packed(sound, 4, 32), fmt(32, 4))), sound, 24)


def test_a_sub_format_that_nobody_knows_is_named() -> None:
    body = fmt(16, 2, valid_bits=16)
    with pytest.raises(NotAudioError, match="sub-format"):
        decode(riff(b"RIFF", packed(SOUND[:1], 2, 16), body[:-8] + b"whatever"))
    ambisonic = body[:-8] + bytes.fromhex("8644c8c1ca000000")
    assert_is(decode(riff(b"RIFF", packed(SOUND[:1], 2, 16), ambisonic)), SOUND[:1], 16)


@pytest.mark.parametrize("order", ["01", "10"])
def test_a_sphere_that_does_not_state_its_byte_order_has_the_one_that_sounds(order: str) -> None:
    samples = packed(SOUND[:1], 2, 16, order="<" if order == "01" else ">")
    assert_is(decode(sphere(samples, sample_byte_format="")), SOUND[:1], 16)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_a_byte_order_that_makes_noise_of_speech_is_the_other_one(
    width: int, channels: int
) -> None:
    sound, bits = SOUND[:channels], 8 * width
    little, big = packed(sound, width, bits), packed(sound, width, bits, order=">")
    block = width * channels
    told: dict[str, Any] = {"channels": channels}
    body = {order: fmt(bits, block, order=order, **told) for order in ("<", ">")}
    for name, data in {
        "WAV": riff(b"RIFF", big, body["<"]),
        "RIFX": riff(b"RIFX", little, body[">"]),
        "W64": w64(body["<"], big),
        "AIFF": aiff(little, bits, **told),
        "AIFF-C": aiff(big, bits, kind=b"sowt", **told),
        "CAF": caf(little, bits, block=block, **told),
        "CAF <": caf(big, bits, block=block, flags=2, **told),
        "AU": au(little, width + 1, **told),
        "SPHERE": sphere(
            big, channel_count=channels, sample_n_bytes=width, sample_byte_format="0123"[:width]
        ),
    }.items():
        decoded = decode(data)
        assert decoded.flags == ("wrong_header",), name
        assert_is(decoded, sound, bits, ("wrong_header",))


@given(
    loud=st.floats(1e-4, 1.0),
    channels=st.integers(1, 3),
    order=st.sampled_from(["<", ">"]),
    color=st.floats(-0.99, 0.99),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_noise_of_any_kind_keeps_the_byte_order_that_is_stated(
    loud: float, channels: int, order: Order, color: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.3, (channels, 1600))
    for at in range(1, 1600):
        noise[:, at] += color * noise[:, at - 1]
    noise *= loud / np.abs(noise).max()
    data = caf(
        packed(noise, 2, 16, order=order), 16,
        block=2 * channels, channels=channels, flags=2 if order == "<" else 0,
    )  # fmt: skip
    assert "wrong_header" not in decode(data).flags


def test_an_aiff_that_states_a_compression_has_it() -> None:
    data = aiff(packed(SOUND[:1], 2, 16), 16, kind=b"sowt").replace(b"AIFC", b"AIFF")
    assert_is(decode(data), SOUND[:1], 16, ("wrong_header",))


@pytest.mark.parametrize("code", [b"Lpcm", b"lpcM", b"twos", b"sowt"])
def test_what_only_ffmpeg_takes_for_plain_samples_is_refused(code: bytes) -> None:
    data = caf(packed(SOUND[:1], 2, 16, order=">"), 16, block=2, code=code)
    with pytest.raises((NotAudioError, DamagedError)):
        decode(data)


def test_a_sphere_whose_fields_disagree_fails() -> None:
    samples = packed(SOUND[:1], 2, 16)
    with pytest.raises(DamagedError, match="sample_byte_format 0123"):
        decode(sphere(samples, sample_byte_format="0123"))
    with pytest.raises(DamagedError, match="sample_byte_format"):
        decode(sphere(np.random.default_rng(0).bytes(8000), sample_byte_format=""))
    with pytest.raises(DamagedError, match="shorten"):
        decode(sphere(b"ajkg\x02" + samples))
    with pytest.raises(DamagedError, match="interleaved"):
        decode(sphere(samples, channels_interleaved="FALSE"))
    with pytest.raises(DamagedError, match="no channels"):
        decode(sphere(samples, channel_count=0, sample_count=1600))


@given(
    bits=st.integers(0, 65),
    block=st.integers(0, 20),
    channels=st.integers(0, 4),
    byte_rate=st.sampled_from([0, 16000, 32000, 48000, 64000, 96000, 12345]),
    valid_bits=st.sampled_from([None, 0, 8, 12, 16, 24]),
    tag=st.sampled_from([1, 3, 6, 7]),
)
@settings(deadline=None, max_examples=200)
def test_whatever_a_header_says_it_is_consistent_or_flagged_or_refused(
    bits: int, block: int, channels: int, byte_rate: int, valid_bits: int | None, tag: int
) -> None:
    told: dict[str, Any] = {"tag": tag, "channels": channels, "valid_bits": valid_bits}
    body = fmt(bits, block, byte_rate=byte_rate, **told)
    try:
        decoded = decode(riff(b"RIFF", packed(SOUND[:1], 2, 16), body))
    except AudioError:
        return
    width = 1 if tag in {6, 7} else -(-bits // 8)
    if "wrong_header" not in decoded.flags:
        assert width
        assert block == channels * width
        assert byte_rate in {0, 16000 * block}
