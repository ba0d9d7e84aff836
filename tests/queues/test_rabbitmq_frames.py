"""Messages whose headers pika cannot read: RabbitMQ lets them through, and no worker stops."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pika")
from pika import BasicProperties, BlockingConnection, ConnectionParameters
from pika.exceptions import InvalidFrameError
from pika.frame import Body, Header
from pika.spec import FRAME_END, FRAME_HEADER

from speechmill.job import Job
from speechmill.queues import open_broker
from speechmill.queues import worker as worker_module
from speechmill.queues.base import Message
from speechmill.queues.dead_letters import read_dead_letters
from speechmill.queues.options import WorkOptions
from speechmill.queues.rabbitmq_frames import TolerantConnection
from speechmill.queues.run import work
from tests.queues.test_hostile import good
from tests.support.brokers import RabbitMQ
from tests.support.chaos import Chaos
from tests.support.harness import Place, corpus, fill_folder

FILES = corpus(2, 4)
HEADERS = 0x2000  # the flag of a message that has some
ROUNDS, MANY_ROUNDS = 1, 100_000
LONGEST_S = 60.0  # of a worker


def read_frame(octets: bytes) -> tuple[int, Any]:
    connection = TolerantConnection.__new__(TolerantConnection)
    connection._frame_buffer = octets
    return connection._read_frame()  # type: ignore[no-any-return]


def announced(properties: bytes, body_bytes: int = 7) -> bytes:
    """The frame that announces a body."""
    content = struct.pack(">HHQ", BasicProperties.INDEX, 0, body_bytes) + properties
    return struct.pack(">BHL", FRAME_HEADER, 1, len(content)) + content + bytes([FRAME_END])


def table(*entries: bytes) -> bytes:
    """Headers as they stand behind the flags."""
    return struct.pack(">L", len(b"".join(entries))) + b"".join(entries)


def entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def nested(depth: int, kind: bytes = b"A") -> bytes:
    """Arrays within arrays, or tables within tables."""
    value = b"V"
    for _ in range(depth):
        inner = value if kind == b"A" else entry(b"x", value)
        value = kind + struct.pack(">L", len(inner)) + inner
    return value


UNREADABLE = {
    "a time that no calendar has": b"T" + struct.pack(">Q", 2**63),
    "the last time": b"T" + b"\xff" * 8,
    "arrays without end": nested(3_000),
    "tables without end": nested(3_000, b"F"),
}


@given(properties=st.binary(max_size=60), body_bytes=st.integers(0, 2**63), rest=st.binary())
def test_whatever_the_properties_are_the_body_is_announced(
    properties: bytes, body_bytes: int, rest: bytes
) -> None:
    octets = announced(properties, body_bytes)
    length, frame = read_frame(octets + rest)
    assert (length, frame.channel_number, frame.body_size) == (len(octets), 1, body_bytes)
    assert isinstance(frame, Header)


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_headers_are_none(value: bytes) -> None:
    octets = announced(struct.pack(">H", HEADERS) + table(entry(b"x", value)))
    length, frame = read_frame(octets)
    assert (length, frame.body_size, frame.properties.headers) == (len(octets), 7, None)


def test_readable_ones_are_as_they_are_and_other_frames_as_well() -> None:
    headers = {"key": "p1/1", "x-delivery-count": 3}
    made = Header(1, 7, BasicProperties(headers=headers)).marshal()
    assert read_frame(made)[1].properties.headers == headers
    assert read_frame(Body(1, b"abc").marshal())[1].fragment == b"abc"
    assert read_frame(made[:-1]) == (0, None)


def test_a_broken_stream_is_an_error() -> None:
    unknown_method = b"\x01\x00\x01\x00\x00\x00\x04\xff\xff\xff\xff\xce"
    unknown_frame = b"\x63\x00\x01\x00\x00\x00\x00\xce"
    without_end = announced(b"")[:-1] + b"\0"
    for octets in (unknown_method, unknown_frame, without_end):
        with pytest.raises((KeyError, InvalidFrameError)):
            read_frame(octets)


class Raw(BasicProperties):  # type: ignore[misc]
    """Properties that are sent as these bytes."""

    def __init__(self, octets: bytes) -> None:
        super().__init__()
        self._octets = octets

    def encode(self) -> list[bytes]:
        return [self._octets]


def drawn(draw: Random, depth: int = 3) -> bytes:
    """A value of any type that RabbitMQ knows, as extreme as not."""
    long = draw.choice((0, 1, 253402300800, 2**63 - 1, 2**63, 2**64 - 1, draw.randrange(2**64)))
    inner = b"".join(drawn(draw, depth - 1) for _ in range(draw.randrange(3) if depth else 0))
    text = draw.choice((b"", b"\xff\xfe", b"p1/1", draw.randbytes(30)))
    name = draw.choice((b"key", b"x-death", b"x-delivery-count", b"\xff", draw.randbytes(5)))
    number = struct.pack(">Q", long)
    return draw.choice(
        (
            *(b"T" + number, b"l" + number, b"I" + number[:4], b"i" + number[:4]),
            *(b"V", b"t" + number[:1], b"b" + number[:1], b"B" + number[:1]),
            *(b"s" + number[:2], b"u" + number[:2], b"D" + number[:5]),
            *(b"d" + struct.pack(">d", 1e300), b"f" + struct.pack(">f", 1e38)),
            *(kind + struct.pack(">L", len(text)) + text for kind in (b"S", b"x")),
            b"A" + struct.pack(">L", len(inner)) + inner,
            b"F" + table(*[entry(name, drawn(draw, depth - 1))] * draw.randrange(2))
            if depth
            else b"V",
        )
    )


def odd_headers(draw: Random, count: int) -> list[bytes]:
    names = (b"key", b"x-death", b"x-delivery-count", b"speechmill-reason", b"\xff", b"")
    some = [[draw.choice(names) for _ in range(draw.randrange(1, 4))] for _ in range(count)]
    return [table(*(entry(name, drawn(draw)) for name in dict.fromkeys(one))) for one in some]


def publish(server: RabbitMQ, queue: str, bodies: Sequence[bytes], tables: Sequence[bytes]) -> int:
    """Publish messages with such headers; how many the broker has taken."""
    taken = 0
    connection = BlockingConnection(ConnectionParameters("127.0.0.1", server.port))
    channel = connection.channel()
    channel.confirm_delivery()
    for body, headers in zip(bodies, tables, strict=True):
        channel.basic_publish("", queue, body, Raw(struct.pack(">H", HEADERS) + headers))
        taken += 1
    connection.close()
    return taken


def test_no_headers_stop_a_worker(
    rabbitmq: RabbitMQ, tmp_path: Path, chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.02)
    source = fill_folder(tmp_path / "source", FILES)
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("headers", number)
        job = Job(source=source.url, sink=str(tmp_path / f"sink-{number}"), transcriber="fake")
        queue = f"frames-{uuid4().hex[:8]}"
        url = rabbitmq.url(queue)
        broker = open_broker(url)
        broker.prepare()
        messages = good(job)
        unreadable = [table(entry(b"x", value)) for value in UNREADABLE.values()]
        large = table(entry(b"x", b"S" + struct.pack(">L", 125_000) + b"x" * 125_000))
        odd = [*unreadable, large, *odd_headers(draw, chaos.choose(60, 300))]
        draw.shuffle(odd)
        half = len(messages) // 2
        broker.publish(messages[:half])
        # One good message has headers that nobody can read; what it says counts all the same.
        bodies = [*(b"no JSON %d" % i for i in range(len(odd))), messages[half].body]
        assert publish(rabbitmq, queue, bodies, [*odd, unreadable[0]]) == len(bodies)
        broker.publish(messages[half + 1 :])
        latest = time.monotonic() + LONGEST_S
        report = work(
            job,
            WorkOptions(queue=url, until_empty=True, metrics="none"),
            stop=lambda latest=latest: time.monotonic() > latest,  # type: ignore[misc]
        )
        assert not report.stopped, f"round {number} did not come to its end"
        assert Place(job.sink).names() == sorted(FILES)
        letters = read_dead_letters(broker)
        assert (len(letters), report.dead_letters) == (len(odd), len(odd))
        assert all(letter.reason and letter.error for letter in letters)
        broker.close()
        chaos.count("messages with odd headers", len(odd))


def test_letters_that_cannot_be_read_hide_no_other(rabbitmq: RabbitMQ) -> None:
    queue = f"letters-{uuid4().hex[:8]}"
    broker = open_broker(rabbitmq.url(queue))
    broker.prepare()
    broker.dead_letters().publish([Message(b"{}", "", {"reason": "it is none"})])
    bad = [table(entry(b"x", value)) for value in UNREADABLE.values()]
    publish(rabbitmq, f"{queue}.dead-letters", [b"%d" % i for i in range(len(bad))], bad)
    letters = read_dead_letters(broker)
    assert len(letters) == 1 + len(bad)
    assert "it is none" in {letter.reason for letter in letters}
