"""Workers of a queue as a user runs them, killed and begun anew; and messages that are mixed up."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import psutil

from speechmill.queues.base import Broker, Message
from speechmill.queues.dead_letters import read_dead_letters
from tests.support.harness import Command, Place

__all__ = ["Crew", "Letters", "poison", "publish_mixed", "wait_until"]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def publish_mixed(broker: Broker, messages: Sequence[Message], seed: int) -> None:
    """Each message twice, in no order."""
    mixed = [*messages, *messages]
    random.Random(seed).shuffle(mixed)
    broker.publish(mixed)


def poison(source: str, gone: str) -> list[Message]:
    """What nothing can be made of: no JSON, no notice, no such object."""
    missing = {
        "speechmill": 1, "source": source, "key": gone, "size": 9, "etag": "e", "modified_us": 1,
    }  # fmt: skip
    return [
        Message(b"\xff\xfe no JSON"),
        Message(b'{"hello": "world"}'),
        Message(json.dumps(missing).encode()),
    ]


@dataclass(frozen=True)
class Letters:
    """The dead letters of a queue: their bodies, and what they are about."""

    bodies: list[bytes]
    about: list[str]

    @staticmethod
    def of(broker: Broker) -> Letters:
        found = read_dead_letters(broker)
        return Letters(sorted(one.message.body for one in found), sorted(one.what for one in found))


@dataclass
class Crew:
    """So many workers. One after the other is killed at random, and begun anew."""

    queue: str
    sink: Place
    options: tuple[str, ...]
    env: Mapping[str, str]
    count: int = 3
    every_s: tuple[float, float] = (2.0, 5.0)
    seed: int = 1
    kills: int = 0
    peaks: list[int] = field(default_factory=list)  # bytes, of each life
    _workers: list[Command] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def _start(self) -> Command:
        return Command("work", self.queue, self.sink.url, *self.options, env=self.env)

    def __enter__(self) -> Self:
        self._workers = [self._start() for _ in range(self.count)]
        self._thread = threading.Thread(target=self._kill_and_begin, daemon=True)
        self._thread.start()
        return self

    def _kill_and_begin(self) -> None:
        chance = random.Random(self.seed)
        while not self._end.wait(chance.uniform(*self.every_s)):
            self._look()
            which = chance.randrange(self.count)
            worker = self._workers[which]
            if worker.running:
                worker.kill()
                self.kills += 1
            worker.finish()
            self._workers[which] = self._start()

    def _look(self) -> None:
        for worker in self._workers:
            try:
                self.peaks.append(psutil.Process(worker.pid).memory_info().rss)
            except psutil.Error:
                continue

    def rest(self) -> None:
        """No more kills: let them finish."""
        self._end.set()
        self._thread.join()

    def said(self) -> str:
        return "\n---\n".join(worker.said()[-2000:] for worker in self._workers)

    def __exit__(self, *_: Any) -> None:
        self.rest()
        for worker in self._workers:
            if worker.running:
                worker.kill()
            worker.finish()
