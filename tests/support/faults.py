"""A proxy on loopback that breaks one HTTP request in so many, in every way a real store does.

``python -m tests.support.faults --listen PORT --target http://127.0.0.1:PORT --rate 0.1 --seed 1``
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import urlsplit

KINDS = (
    "500",
    "503",
    "reset_before",  # the store never sees the request
    "reset_after",  # the store has done it; the reply is lost
    "cut",  # the reply's body ends early
    "slow",  # the reply's body comes late
)
_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"""
_RESET = struct.pack("ii", 1, 0)


class FaultyProxy:
    """Forwards HTTP to ``target``; a share ``rate`` of requests, drawn by ``seed``, goes wrong.

    Use it as a context manager. ``endpoint_url`` is where it listens. ``faults`` counts what was
    done. ``rate`` may be changed. With ``down`` set, every connection is reset.
    """

    def __init__(
        self,
        target: str,
        *,
        rate: float = 0.1,
        seed: int = 0,
        kinds: Iterable[str] = KINDS,
        slow_s: float = 0.3,
        port: int = 0,
    ) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.rate = rate
        self._kinds = tuple(kinds)
        self._slow_s = slow_s
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.down = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed: the end
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _draw(self) -> str | None:
        with self._lock:
            self.requests += 1
            kind = None
            if self.down:
                kind = "reset_before"
            elif self._random.random() < self.rate:
                kind = self._random.choice(self._kinds)
            if kind:
                self.faults[kind] += 1
            return kind

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client, client.makefile("rb") as requests:
            upstream = socket.create_connection(self._target)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with upstream, upstream.makefile("rb") as replies:
                while head := _read_head(requests):
                    if _field(head, b"expect"):
                        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    body = _read_body(requests, head)
                    if not self._exchange(client, upstream, replies, head, body):
                        return

    def _exchange(
        self,
        client: socket.socket,
        upstream: socket.socket,
        replies: BinaryIO,
        head: bytes,
        body: bytes,
    ) -> bool:
        """One request and its reply. False when the connection is not to be used again."""
        kind = self._draw()
        is_head = head.startswith(b"HEAD ")
        if kind in ("500", "503"):
            client.sendall(_error_reply(kind, is_head=is_head))
            return True
        if kind == "reset_before":
            _reset(client)
            return False
        upstream.sendall(head + body)
        reply = _read_head(replies)
        while reply.startswith(b"HTTP/1.1 100"):
            reply = _read_head(replies)
        if not reply:
            return False
        status = int(reply.split(b" ", 2)[1])
        answer = b"" if is_head or status in (204, 304) else _read_body(replies, reply)
        if kind == "reset_after":
            _reset(client)
            return False
        if kind == "cut" and answer:
            client.sendall(reply + answer[: len(answer) // 2])
            return False
        if kind == "slow":
            client.sendall(reply)
            for start in range(0, len(answer), max(1, len(answer) // 3 + 1)):
                time.sleep(self._slow_s / 3)
                client.sendall(answer[start : start + len(answer) // 3 + 1])
            return True
        client.sendall(reply + answer)
        return b"connection: close" not in reply.lower()


def _error_reply(kind: str, *, is_head: bool) -> bytes:
    code, message = {
        "500": ("InternalError", "We encountered an internal error. Please try again."),
        "503": ("SlowDown", "Please reduce your request rate."),
    }[kind]
    body = _ERROR.format(code=code, message=message).encode()
    head = f"HTTP/1.1 {kind} {code}\r\nContent-Type: application/xml\r\n"
    reply = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    return reply if is_head else reply + body


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    # makefile() holds the socket open: detaching closes it now, which sends the reset.
    socket.close(client.detach())


def _read_head(stream: BinaryIO) -> bytes:
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _field(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _read_body(stream: BinaryIO, head: bytes) -> bytes:
    """The body, as it is on the wire."""
    if _field(head, b"transfer-encoding").lower() == b"chunked":
        parts = []
        while True:
            line = stream.readline()
            parts.append(line)
            size = int(line.split(b";")[0], 16)
            parts.append(_exactly(stream, size + 2))
            if size == 0:
                return b"".join(parts)
    return _exactly(stream, int(_field(head, b"content-length") or 0))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def main() -> None:
    """Run the proxy until interrupted; then say what it did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=int, default=0, help="port on 127.0.0.1")
    parser.add_argument("--target", required=True, help="such as http://127.0.0.1:8333")
    parser.add_argument("--rate", type=float, default=0.1, help="share of requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with FaultyProxy(
        options.target, rate=options.rate, seed=options.seed, port=options.listen
    ) as proxy:
        print(proxy.endpoint_url, flush=True)  # noqa: T201 a command
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        print(proxy.requests, "requests;", dict(proxy.faults))  # noqa: T201 see above


if __name__ == "__main__":
    main()
