"""The process that decodes recordings for another one: it reads requests until it is let go of.

Whatever a file makes FFmpeg do ends at most this process. A request and its answer are a JSON
object and the bytes behind it (the recording; its samples, float32), or a file that holds them.
"""

from __future__ import annotations

import array
import json
import mmap
import resource
import signal
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.audio.decoding import decode
from speechmill.audio.limits import Limits
from speechmill.machine import FileMap, join_ledger

__all__ = ["main", "receive", "send"]

MAX_DATA_BYTES: Final = 4 * 2**30
"""Memory of its own that the process may have. A decoder holds a file of 64 MiB and five minutes of
sound, 58 MB, more than once; longer ones are in files."""

_PREFIX: Final = struct.Struct("!IQ")  # bytes of the JSON object, and of what follows it

Body = bytes | mmap.mmap | memoryview


def send(channel: socket.socket, told: Mapping[str, Any], body: Body) -> None:
    """Send a JSON object with some bytes; those of a map go as its file.

    Raises:
        OSError: the other side has gone.
    """
    head = json.dumps({**told, "is_file": isinstance(body, FileMap)}).encode()
    prefix = _PREFIX.pack(len(head), 0 if isinstance(body, FileMap) else len(body))
    fds = array.array("i", [body.file.fileno()] if isinstance(body, FileMap) else [])
    sent = channel.sendmsg([prefix], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
    channel.sendall(prefix[sent:] + head)
    if not isinstance(body, FileMap):
        channel.sendall(body)


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytearray | FileMap] | None:
    """Receive what ``send`` sent; None where the other side has gone.

    Raises:
        OSError: the connection is broken.
    """
    prefix, fds, _, _ = socket.recv_fds(channel, _PREFIX.size, 1)
    try:
        rest = _PREFIX.size - len(prefix)
        if not prefix or (more := _exactly(channel, rest)) is None:
            return None
        head_bytes, body_bytes = _PREFIX.unpack(prefix + more)
        head, body = _exactly(channel, head_bytes), _exactly(channel, body_bytes)
        if head is None or body is None:
            return None
        told = json.loads(head)
        return told, FileMap(fds[0]) if told.pop("is_file") else body
    finally:
        for fd in fds:
            socket.close(fd)


def _exactly(channel: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        if not (got := channel.recv_into(left)):
            return None
        left = left[got:]
    return data


def main(fd: int, ledger: int, place: int) -> None:
    """Decode what comes over the socket ``fd`` until its other side is closed."""
    join_ledger(ledger, place)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # its owner decides on the end
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, ValueError):  # a smaller limit holds already
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory is short, this process goes before its owner
        Path("/proc/self/oom_score_adj").write_text("1000")
    with socket.socket(fileno=fd) as channel, suppress(OSError):
        send(channel, {}, b"")  # it has started
        while (request := receive(channel)) is not None:
            send(channel, *_answer(*request))
            del request


def _answer(told: Mapping[str, Any], data: bytearray | FileMap) -> tuple[dict[str, Any], Body]:
    # SIGPROF ends the process once it has used so much processor time.
    signal.setitimer(signal.ITIMER_PROF, told["cpu_s"])
    try:
        whole = data if isinstance(data, FileMap) else bytes(data)
        decoded = decode(whole, **told["choices"], limits=Limits(**told["limits"]))
    except Exception as error:  # noqa: BLE001 - it is raised again where the request came from
        return {"error": type(error).__name__, "text": str(error)}, b""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    samples = decoded.waveform.samples
    facts = {
        "sample_rate": decoded.sample_rate,
        "decoded_rate": decoded.waveform.sample_rate,
        "channels": decoded.channels,
        "flags": decoded.flags,
        "overlaps": decoded.overlaps,
        "num_samples": len(samples),
    }
    return facts, _file_of(samples) or np.ascontiguousarray(samples).view(np.uint8).data


def _file_of(samples: NDArray[np.float32]) -> FileMap | None:
    """The file that samples are a map of, from its beginning; None for those in memory."""
    base: Any = samples
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, FileMap) else None
