"""Decode in processes of their own, so that a file that ends its decoder ends nothing else."""

from __future__ import annotations

import atexit
import builtins
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from speechmill import errors
from speechmill.audio.decoder_process import receive, send
from speechmill.audio.decoding import Decoded
from speechmill.audio.formats.octets import Octets
from speechmill.audio.limits import DEFAULT_LIMITS, Limits
from speechmill.errors import DecoderDiedError, EngineError
from speechmill.machine import Claim, FileMap, lend_ledger, num_cores, take_back_ledger
from speechmill.records import Waveform

__all__ = ["decode_isolated"]

MAX_PROCESSES: Final = 8
"""One decodes some 300 clips a second, more than eight GPUs transcribe; each takes 80 MB."""

ATTEMPTS: Final = 2
"""A process may also be killed for want of memory that others have taken."""

CPU_S: Final = 60.0
CPU_S_PER_BYTE: Final = 40e-6
"""Processor time that a decoder may take for a recording, times a raised ``Limits.load``: for what
stays within one call of a library, where no limit is asked about."""
MAX_CPU_S: Final = 200_000.0  # as many milliseconds, ten times, are what poll can wait

PATIENCE: Final = 10.0
"""So many times its processor time a decoder may take by the clock: the machine may be busy."""

LARGE_BYTES: Final = 300_000
"""A recording of five minutes, whose waveform goes to a file, is larger as Opus at 8 kbit/s."""

CLOSE_S: Final = 1.0
START_PAUSES_S: Final = (0.2, 1.0, 5.0)
"""Before another try to start a decoder: the machine may be short of memory for a moment."""

# With the modules of this process, wherever they were found.
_START: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from speechmill.audio.decoder_process import main
main(*map(int, sys.argv[2:]))
"""

_Answer = tuple[dict[str, Any], bytearray | FileMap]


def decode_isolated(
    data: Octets,
    *,
    keep_damaged: bool = False,
    track: int | None = None,
    channel: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Decoded:
    """Decode as ``audio.decode`` does, in another process, which is kept for the next recording.

    Args:
        data: the recording.
        keep_damaged: see ``audio.decode``.
        track: see ``audio.decode``.
        channel: see ``audio.decode``.
        limits: see ``audio.decode``.

    Raises:
        DecoderDiedError: it ended its decoder twice, or took too much time.
        EngineError: a decoder cannot be started.
        AudioError, StorageError: see ``audio.decode``.
    """
    cpu_s = min(MAX_CPU_S, (CPU_S + CPU_S_PER_BYTE * len(data)) * max(1.0, limits.load))
    choices = {"keep_damaged": keep_damaged, "track": track, "channel": channel}
    told = {"choices": choices, "limits": asdict(limits), "cpu_s": cpu_s}
    deaths = 0
    held = Claim(0) if len(data) > LARGE_BYTES else None  # who wants room alone waits for this one
    while deaths < ATTEMPTS:
        with _decoders.borrowed() as decoder:
            answer = decoder.ask(told, data, PATIENCE * cpu_s)
        if answer is not None:
            del held
            return _decoded(*answer)
        deaths += decoder.was_asked
        if decoder.exceeded:
            raise DecoderDiedError(
                f"decoding it was given up after {cpu_s:.0f} s of processor time"
            )
    raise DecoderDiedError(f"it ended its decoder {ATTEMPTS} times, by {decoder.ended_by}")


def _decoded(told: Mapping[str, Any], body: bytearray | FileMap) -> Decoded:
    if "error" in told:
        kind = getattr(errors, told["error"], None) or getattr(builtins, told["error"], None)
        raise (kind or RuntimeError)(told["text"])
    samples = np.frombuffer(body, np.float32, told["num_samples"])
    if isinstance(body, FileMap):
        Claim(len(body)).keep_for(body)
    return Decoded(
        Waveform(samples, told["decoded_rate"]),
        told["sample_rate"],
        told["channels"],
        tuple(told["flags"]),
        tuple((first, end) for first, end in told["overlaps"]),
    )


class _Decoder:
    """A process that decodes, and what ended it once it has ended."""

    def __init__(self) -> None:
        self.ended_by, self.exceeded, self.was_asked = "", False, False
        ledger, self._place = lend_ledger()
        self._channel, theirs = socket.socketpair()
        with theirs:
            told = [json.dumps(sys.path), *map(str, (theirs.fileno(), ledger, self._place))]
            # -P: no module of the working directory is in the way, until sys.path is ours.
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and nothing of a file's
                [sys.executable, "-P", "-c", _START, *told],
                pass_fds=[theirs.fileno(), ledger],
                stdin=subprocess.DEVNULL,
            )
        if self._receive() is None:
            raise OSError(f"it ended by {self.ended_by}, and may have said why above")

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked again."""
        return not self.ended_by and self._process.poll() is None

    def ask(self, told: Mapping[str, Any], data: Octets, patience_s: float) -> _Answer | None:
        """Let it decode; None where it has ended, by that if it ``was_asked``."""
        self.was_asked = False
        try:
            send(self._channel, told, data)
        except OSError:
            self.close()
            return None
        self.was_asked = True
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        if not waiting.poll(1000 * patience_s):
            self.exceeded = True
            self._process.kill()
            self.close()
            return None
        return self._receive()

    def _receive(self) -> _Answer | None:
        answer = None
        with suppress(OSError):
            answer = receive(self._channel)
        if answer is None:
            self.close()
        return answer

    def close(self) -> None:
        """End it, and note what it had ended by."""
        self._channel.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_S)
        self._process.kill()
        code = self._process.wait()
        if not self.ended_by:
            take_back_ledger(self._place)
        self.ended_by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.exceeded |= code == -signal.SIGPROF

    def forget(self) -> None:
        """Let go of it in a process that was forked from the one that it works for."""
        self._channel.close()


class _Decoders:
    """The decoders of this process, started when they are first needed, and kept."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(min(MAX_PROCESSES, num_cores()))
        self._all: set[_Decoder] = set()
        self._idle: list[_Decoder] = []  # the one used last is at its end: its memory is warm

    @contextmanager
    def borrowed(self) -> Iterator[_Decoder]:
        """Have a decoder to oneself, as soon as there is one.

        Raises:
            EngineError: it cannot be started.
        """
        with self._room:
            decoder = self._take()
            try:
                yield decoder
            except BaseException:  # want of memory, an interrupt: the next one would get its answer
                decoder.close()
                raise
            finally:
                if decoder.is_alive:
                    self._idle.append(decoder)
                else:
                    self._all.discard(decoder)

    def _take(self) -> _Decoder:
        with suppress(IndexError):
            while True:
                decoder = self._idle.pop()
                if decoder.is_alive:
                    return decoder
                decoder.close()  # as by a system that was short of memory
                self._all.discard(decoder)
        for pause_s in (*START_PAUSES_S, None):
            try:
                decoder = _Decoder()
                break
            except OSError as error:
                if pause_s is None:
                    raise EngineError(
                        f"the process that decodes recordings cannot be started: {error}"
                    ) from None
                time.sleep(pause_s)
        self._all.add(decoder)
        return decoder

    def close(self) -> None:
        """End all that are idle; those at work end when they find themselves alone."""
        for decoder in self._idle:
            decoder.close()

    def forget(self) -> None:
        """Let go of all, and lock nothing, in a process that was forked."""
        for decoder in self._all:
            decoder.forget()
        self.__init__()  # type: ignore[misc]


_decoders = _Decoders()
atexit.register(_decoders.close)
os.register_at_fork(after_in_child=_decoders.forget)
