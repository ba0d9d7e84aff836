"""Recordings that may end the process that works on them: found after crashes, tried alone, and
given up in the end.

Decoders have processes of their own. What else can end a process (a codec's or the model's kernels,
want of memory) takes the notes that it kept along, so they are in the sink.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from speechmill.dataset.commit import commit
from speechmill.dataset.layout import STATE
from speechmill.dataset.schema import utterances_to_table
from speechmill.errors import NotFoundError, StorageError, UnavailableError, WorkerDiedError
from speechmill.pipeline.resources import Resources
from speechmill.records import Failure, Part, Recording
from speechmill.storage import Object, Store

__all__ = ["CrashCounts", "InHand", "give_up"]

T = TypeVar("T")

DEATHS_TOGETHER: Final = 2
"""Processes that may die with a recording in hand, among others, before it is tried alone: they
also die of the machine that goes away."""

DOWN_S: Final = 2.0
"""For the deletion of a note where a store is down, which may be the sink."""

KEPT_S: Final = 24 * 3600.0
"""How long a note of what a dead process had in hand counts."""

DEATHS_ALONE: Final = 2
"""Of a local build's processes, with nothing but this recording in hand."""


class CrashCounts:
    """Counts in the sink of how often a recording was begun, alone, and not ended.

    They are in the sink because the process that knew is gone. A broker's own count does not
    serve: it counts messages that a worker only held, so where workers are often killed it blames
    the wrong recordings. ``message`` is what is said of one that was begun too often; ``work`` is
    as in ``InHand``.
    """

    def __init__(self, sink: Store, most: int, work: str = "") -> None:
        self._sink, self._most, self._work = sink, most, work
        self.message = (
            f"{most} workers went away while they had nothing else in hand: out of memory, perhaps"
        )

    def _key(self, file_name: str) -> str:
        digest = hashlib.blake2b(file_name.encode(), digest_size=16).hexdigest()
        return f"{_folder(self._work, 'suspects')}/{digest}.json"

    def begin(self, file_name: str) -> bool:
        """Count a begin. Returns False where the recording was begun too often."""
        key = self._key(file_name)
        try:
            begun = int(json.loads(self._sink.get(key).data)["begun"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            begun = 0
        if begun >= self._most:
            return False
        told = {"file_name": file_name, "begun": begun + 1}
        self._sink.put(key, json.dumps(told).encode())
        return True

    def take_back(self, file_name: str) -> None:
        """Count the last begin no more: it has ended by an error, and not by a death."""
        with suppress(NotFoundError, ValueError, KeyError, TypeError):
            told = json.loads(self._sink.get(self._key(file_name)).data)
            told["begun"] -= 1
            self._sink.put(self._key(file_name), json.dumps(told).encode())

    def clear(self, file_name: str) -> None:
        """Forget a recording that has ended, whatever its outcome."""
        with suppress(NotFoundError):
            self._sink.delete(self._key(file_name))

    def alone(
        self, file_name: str, work: Callable[[], T | None], give_up: Callable[[str], T]
    ) -> T | None:
        """Work on a recording with nothing else in hand; give it up, with the reason, where that
        was begun too often. ``work`` returns None where it was stopped before its end."""
        if not self.begin(file_name):
            made: T | None = give_up(self.message)
        else:
            try:
                made = work()
            except Exception:
                self.take_back(file_name)
                raise
            if made is None:
                self.take_back(file_name)
                return None
        self.clear(file_name)
        return made


def give_up(
    resources: Resources, part: Part, recordings: Sequence[Recording], message: str
) -> list[Failure]:
    """Commit failures of a part's recordings that processes have died of; raises as ``commit``."""
    failures = [
        Failure(r, resources.folder_of(r.file_name), "worker", WorkerDiedError.__name__, message)
        for r in recordings
    ]
    recipe = resources.recipe.id
    commit(
        resources.sink,
        part,
        utterances_to_table([], resources.schema, recipe),
        failures,
        recipe=recipe,
        replaces={},
        is_current=resources.is_current,
    )
    return failures


class InHand:
    """Notes in the sink of what this process has in hand, for the one that comes after its death.

    Those that dead processes have left are read when it is made. Thread-safe. ``work`` names
    another kind of work than making rows: what the one has died of is no suspect of the other.
    """

    def __init__(self, sink: Store, work: str = "") -> None:
        self._sink, self._folder = sink, _folder(work, "in-hand")
        self._counts: list[str] = []  # of ``CrashCounts``, by key
        self._lock = threading.Lock()
        self._deaths: dict[str, int] = {}  # by file name
        self._left: dict[str, set[str]] = {}  # by note
        with suppress(NotFoundError):  # there is no sink yet
            self._read()
            self._counts = [there.key for there in sink.list(_folder(work, "suspects"))]

    def _read(self) -> None:
        for there in self._sink.list(self._folder):
            with suppress(NotFoundError, ValueError, KeyError, TypeError, AttributeError):
                told = json.loads(self._sink.get(there.key).data)
                if not _is_alive(told["process"]):
                    deaths = {str(name): int(count) for name, count in told["deaths"].items()}
                    is_here = told["process"]["host"] == socket.gethostname()
                    self._add(there, deaths, is_here=is_here)

    def _add(self, note: Object, deaths: Mapping[str, int], *, is_here: bool) -> None:
        if time.time() - note.modified_us / 1e6 > KEPT_S:
            self._delete(note.key)
            return
        if is_here:  # else its process may live: the note expires
            self._left[note.key] = set(deaths)
        for name, before in deaths.items():
            self._deaths[name] = max(1 + before, self._deaths.get(name, 0))

    def is_suspect(self, file_name: str) -> bool:
        """Whether so many processes have died with it in hand that it must be tried alone."""
        return self._deaths.get(file_name, 0) >= DEATHS_TOGETHER

    @contextmanager
    def note(self, file_names: Sequence[str]) -> Iterator[None]:
        """Note what is in hand until the end, unless that is the process's death."""
        if not file_names:
            yield
            return
        with self._lock:
            deaths = {name: self._deaths.get(name, 0) for name in file_names}
        told = {"process": _this_process(), "deaths": deaths}
        key = f"{self._folder}/{secrets.token_hex(8)}.json"
        self._sink.put(key, json.dumps(told).encode())
        waits_s: float | None = None
        try:
            yield
        except UnavailableError:
            waits_s = DOWN_S
            raise
        finally:
            # In a thread: a sink that is down is tried for a minute, which nobody is to wait for.
            deleting = threading.Thread(target=self._delete, args=(key,), daemon=True)
            deleting.start()
            deleting.join(waits_s)

    def done(self, file_names: Iterable[str]) -> None:
        """Suspect these no longer: they have come to their end."""
        ended = set(file_names)
        with self._lock:
            for name in ended:
                self._deaths.pop(name, None)
            for names in self._left.values():
                names.difference_update(ended)
            settled = [key for key, names in self._left.items() if not names]
            for key in settled:
                del self._left[key]
        for key in settled:
            self._delete(key)

    def forget(self) -> None:
        """Delete the notes of the dead, and the counts: all is done that they had in hand."""
        with self._lock:
            left = [*self._left, *self._counts]
        for key in left:
            self._delete(key)

    def _delete(self, key: str) -> None:
        with suppress(StorageError):  # what is left expires
            self._sink.delete(key)


def _folder(work: str, what: str) -> str:
    return f"{STATE}/{work}-{what}" if work else f"{STATE}/{what}"


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": _start(os.getpid())}


def _is_alive(process: dict[str, Any]) -> bool:
    """Whether it still runs here; one of another machine counts as dead, which costs time only."""
    if process["host"] != socket.gethostname():
        return False
    start = _start(process["pid"])
    if start is None and not Path("/proc/self/stat").exists():  # as on macOS
        with suppress(OSError):
            os.kill(process["pid"], 0)
            return True
    return start is not None and start == process["start"]


def _start(pid: int) -> str | None:
    """When a process was started, as the system counts; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
