"""``work``: takes recordings from a queue, and grows the dataset by them, until it is stopped.

One thread talks to the broker and keeps the books; it never waits for anything else, so heartbeats
go on however long a recording takes. Two batches are processed at a time, as two shards are in a
build. A message is acknowledged when everything it asks for is settled: committed, there already,
not chosen, or a dead letter that the broker has confirmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from speechmill.dataset.run_log import RunLog
from speechmill.errors import BrokerError, SpeechmillError, StorageError
from speechmill.pipeline.listing import below_sink
from speechmill.pipeline.resources import Resources
from speechmill.pipeline.selection import selection
from speechmill.queues.base import Broker, Consumer, Delivery
from speechmill.queues.batch import Batches, Outcome, Request
from speechmill.queues.dead_letters import dead_letter
from speechmill.queues.gathering import SUSPECT, BatchSize, by_group, suspects
from speechmill.queues.notices import Notice, PoisonError, key_below, read_notices
from speechmill.queues.options import WorkOptions
from speechmill.queues.tally import Observer, WorkTally
from speechmill.records import ShardReport, printable
from speechmill.storage import inside

__all__ = ["Worker"]

BATCHES = 2  # at a time: while the model works on the one, the other is fetched and committed
COMMIT_EVERY_S = 20.0  # within a part: what a kill may cost
TICK_S = 0.2
HURRY_S = 0.5  # without a message, until a batch begins as it is where a queue is to be emptied
LAG_EVERY_S = 5.0
IDLE_S = 1.0  # without a message, until a queue that is to be emptied is looked at
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_Processed = tuple[Sequence[Outcome], ShardReport]


@dataclass(slots=True, eq=False)
class _Held:
    """A message in hand, and for how many recordings it still waits."""

    delivery: Delivery
    waits_for: int = 0


@dataclass(slots=True, eq=False)
class _Wanted:
    """A recording that messages in hand ask for."""

    request: Request
    held: list[_Held]
    since: float
    attempts: int = 0
    not_before: float = 0.0

    @property
    def deaths(self) -> int:
        return max((h.delivery.deaths for h in self.held), default=0)


@dataclass(slots=True)
class _Batch:
    wanted: list[_Wanted]
    started: float
    future: Future[_Processed]
    small: bool  # of suspects: nothing else is in hand meanwhile


@dataclass(slots=True, eq=False)
class _Dead:
    """A dead letter that is to be sent, and the messages that are settled by it."""

    reason: str
    held: list[_Held]
    file_name: str = ""
    stage: str = ""
    error: str = ""
    attempts: int = 1


class Worker:
    """Takes messages of one queue until it is stopped, or the queue is empty.

    Args:
        tools: of the job, settled with the sink.
        consumer: where the messages come from.
        broker: the same queue, for its dead letters.
        stop: whether to stop.
    """

    def __init__(
        self,
        tools: Resources,
        options: WorkOptions,
        broker: Broker,
        consumer: Consumer,
        log: RunLog,
        observer: Observer,
        *,
        stop: Callable[[], bool],
    ) -> None:
        self.tools, self.options, self.job = tools, options, tools.job
        self.consumer, self.log, self.observer, self.stop = consumer, log, observer, stop
        self.tally = WorkTally()
        self._dead_letters = broker.dead_letters()
        self._batches = Batches(tools, commit_every_s=COMMIT_EVERY_S)
        self._reason = selection(tools.job)
        self._sink_below = inside(tools.source.url, tools.sink.url)
        self._size = BatchSize(options.batch_recordings)
        self._pool = ThreadPoolExecutor(BATCHES, thread_name_prefix="batch")
        self._waiting: dict[str, _Wanted] = {}  # by key, in order of arrival
        self._working: dict[str, _Wanted] = {}
        self._running: list[_Batch] = []
        self._dead: list[_Dead] = []
        self._dead_not_before = 0.0
        self._settled: list[Delivery] = []
        self._in_hand: set[_Held] = set()
        self._last_message = time.monotonic()
        self._lag_at = 0.0
        self._troubles = 0  # batches in a row that a store has failed
        self._giving_up = False

    def run(self) -> None:
        """Work.

        Raises:
            BrokerError: the broker stays away, or refuses.
            UnavailableError: a store stays down.
            SpeechmillError: the job cannot be done.
        """
        try:
            while not (self.stop() and not self._running):
                self._collect()
                self._receive()
                self._start_batches()
                self._send_dead_letters()
                self._acknowledge()
                self._look_around()
                if self.options.until_empty and self._is_done():
                    break
        finally:
            self._giving_up = True
            wait([b.future for b in self._running], self.options.grace_s)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._acknowledge()
            self._dead_letters.close()

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """Put messages down as what they ask for."""
        for delivery in deliveries:
            self.tally.messages += 1
            held = _Held(delivery)
            self._in_hand.add(held)
            try:
                notices = read_notices(delivery.message)
            except PoisonError as error:
                self._bury(_Dead(str(error), [held], error="PoisonError"))
                continue
            self._ask(held, notices)

    def _receive(self) -> None:
        size = self._size.size if self.consumer.shares else self.options.batch_recordings
        room = max(0, (BATCHES + 1) * size - len(self._in_hand))
        if self.stop() or self._dead:
            room = 0
        some = self.consumer.receive(room, TICK_S)
        if some:
            self._last_message = time.monotonic()
        self._forget_lost()
        self.take(some)

    def _forget_lost(self) -> None:
        """What the broker will deliver again, here or elsewhere, is not waited with."""
        lost = {h for h in self._in_hand if not self.consumer.holds(h.delivery)}
        if not lost:
            return
        self._in_hand -= lost
        for key, wanted in list(self._waiting.items()):
            wanted.held = [h for h in wanted.held if h not in lost]
            if not wanted.held:
                del self._waiting[key]
        for dead in self._dead:
            dead.held = [h for h in dead.held if h not in lost]
        self._dead = [dead for dead in self._dead if dead.held]

    def _ask(self, held: _Held, notices: Sequence[Notice]) -> None:
        for notice in notices:
            key = key_below(self.tools.source.url, notice)
            if key is None and notice.is_ours:
                self._bury(
                    _Dead(
                        f"it is of the source {notice.source}, this dataset is of "
                        f"{self.tools.source.url}",
                        [held],
                        error="SourceChangedError",
                    )
                )
                return
            if key is None or self._is_left_out(key, notice):
                self.tally.verdicts["left out"] += 1
                continue
            held.waits_for += 1
            self._want(key, notice, held)
        if not held.waits_for:
            self._settle(held)

    def _is_left_out(self, key: str, notice: Notice) -> bool:
        if self._sink_below is not None and below_sink(key, self._sink_below):
            return True
        if notice.kind == "removed" and not self.options.drop_removed:
            return True
        return self._reason(printable(key)) is not None

    def _want(self, key: str, notice: Notice, held: _Held) -> None:
        working = self._working.get(key)
        if working is not None and notice.is_ours and _same(working.request.notice, notice):
            working.held.append(held)  # twice, or again after the connection was lost
            return
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = _Wanted(Request(notice, key), [held], time.monotonic())
            return
        waiting.held.append(held)
        if _goes_before(notice, waiting.request.notice):
            waiting.request = Request(notice, key)

    def _start_batches(self) -> None:
        while len(self._running) < BATCHES and not (self.stop() or self._giving_up):
            chosen, small = self._choose()
            if not chosen:
                return
            for wanted in chosen:
                key = wanted.request.key
                del self._waiting[key]
                self._working[key] = wanted
            self.consumer.begin([h.delivery for w in chosen for h in w.held])
            requests = [w.request for w in chosen]
            future = self._pool.submit(self._batches.process, requests, stop=self._stopping)
            self._running.append(_Batch(chosen, time.monotonic(), future, small))

    def _stopping(self) -> bool:
        return self._giving_up or self.stop()

    def _choose(self) -> tuple[list[_Wanted], bool]:
        """The next batch, if it is time for one; and whether it must be alone."""
        now = time.monotonic()
        ready = [
            w
            for key, w in self._waiting.items()
            if w.not_before <= now and key not in self._working
        ]
        if not ready or any(batch.small for batch in self._running):
            return [], False
        deaths = max(w.deaths for w in ready)
        if deaths >= SUSPECT:
            if self._running:
                return [], False
            chosen = [w for w in ready if w.deaths == deaths][: suspects(deaths)]
            chosen[0].request.alone = suspects(deaths) == 1
            return chosen, True
        size = self._size.size
        due = ready[0].since + self.options.linger_s <= now
        hurry = self.options.until_empty and now - self._last_message > HURRY_S
        if len(ready) < size and not (due or hurry or ready[0].attempts):
            return [], False
        return by_group(ready, lambda w: self._batches.part(w.request), size), False

    def _collect(self) -> None:
        for batch in [b for b in self._running if b.future.done()]:
            self._running.remove(batch)
            for wanted in batch.wanted:
                self._working.pop(wanted.request.key, None)
            try:
                outcomes, report = batch.future.result()
            except StorageError as error:
                self._try_again(batch, error)
                continue
            self._troubles = 0
            self._count(batch, report)
            by_request = {w.request: w for w in batch.wanted}
            for outcome in outcomes:
                self._judge(by_request[outcome.request], outcome)

    def _count(self, batch: _Batch, report: ShardReport) -> None:
        seconds, tally = time.monotonic() - batch.started, self.tally
        self._size.learn(len(report.done), seconds)
        tally.batches += 1
        tally.batch_s += seconds
        tally.batch_size = self._size.size
        tally.commit_s += report.commit_s
        tally.conflicts += report.conflicts
        tally.written_bytes += report.written_bytes
        for done in report.done:
            tally.done.add(done)
            self.log.recording(done)
        self.log.event(
            "batch done",
            recordings=len(batch.wanted),
            done=len(report.done),
            wall_s=round(seconds, 3),
            commit_s=round(report.commit_s, 3),
            conflicts=report.conflicts,
            stopped=report.stopped,
        )
        self.observer.batch(len(batch.wanted), seconds)

    def _try_again(self, batch: _Batch, error: StorageError) -> None:
        """A store has failed, not the recordings: all of the batch waits, for ever longer."""
        self._troubles += 1
        if self._troubles >= self.job.max_attempts or self._stopping():
            raise error
        pause_s = _pause(self._troubles)
        self._say(f"{error}; trying again in {pause_s:.0f} s", error)
        for wanted in batch.wanted:
            self._wait(wanted, pause_s)

    def _wait(self, wanted: _Wanted, pause_s: float) -> None:
        """Put a recording back. A newer message that has come meanwhile takes its part."""
        wanted.not_before = time.monotonic() + pause_s
        newer = self._waiting.get(wanted.request.key)
        if newer is None:
            self._waiting[wanted.request.key] = wanted
        else:
            newer.held += wanted.held

    def _judge(self, wanted: _Wanted, outcome: Outcome) -> None:
        """Settle the messages of a recording, or try it again, or give it up."""
        failure, attempts = outcome.failure, wanted.attempts + 1
        self.tally.verdicts[outcome.verdict] += 1
        if outcome.verdict == "unfinished":
            self._wait(wanted, 0.0)
            return
        if outcome.verdict not in ("failed", "missing"):
            for held in wanted.held:
                self._one_less(held)
            return
        # What cannot be decoded will not be by trying again; what is missing may come.
        final = failure is not None and failure.stage in ("decode", "worker")
        if not final and attempts < self.job.max_attempts:
            wanted.attempts = attempts
            self._wait(wanted, _pause(attempts))
            return
        name = outcome.request.file_name
        if failure is None:
            reason = f"there is no such object: {name}"
            self._bury(_Dead(reason, wanted.held, name, "fetch", "NotFoundError", attempts))
        else:
            self._bury(
                _Dead(failure.message, wanted.held, name, failure.stage, failure.error, attempts)
            )

    def _one_less(self, held: _Held) -> None:
        held.waits_for -= 1
        if held.waits_for <= 0:
            self._settle(held)

    def _settle(self, held: _Held) -> None:
        if held in self._in_hand:
            self._in_hand.discard(held)
            self._settled.append(held.delivery)

    def _acknowledge(self) -> None:
        settled, self._settled = self._settled, []
        if settled:
            self.consumer.ack(settled)

    def _bury(self, dead: _Dead) -> None:
        """Have a dead letter sent, if one of its messages is still ours to answer for."""
        dead.held = [h for h in dead.held if h in self._in_hand]
        if dead.held:
            self._dead.append(dead)

    def _send_dead_letters(self) -> None:
        now = time.monotonic()
        if not self._dead or now < self._dead_not_before:
            return
        letters = [
            dead_letter(
                dead.held[0].delivery,
                reason=dead.reason,
                error=dead.error,
                stage=dead.stage,
                file_name=dead.file_name,
                attempts=dead.attempts,
            )
            for dead in self._dead
        ]
        try:
            self._dead_letters.publish(letters)
        except BrokerError as error:
            self._dead_not_before = now + FIRST_PAUSE_S
            self._say(f"dead letters cannot be sent: {error}; trying again", error)
            return
        buried, self._dead = self._dead, []
        for dead in buried:
            self.tally.dead_letters += 1
            self.log.event(
                "dead letter",
                "warning",
                file_name=dead.file_name,
                origin=dead.held[0].delivery.origin,
                error=dead.error,
                reason=dead.reason,
            )
            for held in dead.held:
                self._one_less(held)

    def _look_around(self) -> None:
        self.tally.in_hand = len(self._in_hand)
        now = time.monotonic()
        if now - self._lag_at > LAG_EVERY_S:
            self._lag_at = now
            self.tally.lag = self.consumer.lag()
        self.observer.progress(self.tally)
        self.log.flush()

    def _is_done(self) -> bool:
        idle = time.monotonic() - self._last_message > IDLE_S
        busy = self._in_hand or self._running or self._dead or self._settled
        return idle and not busy and self.consumer.is_empty()

    def _say(self, text: str, error: SpeechmillError) -> None:
        self.observer.said(text)
        self.log.event("trouble", "warning", error=type(error).__name__, message=str(error))


def _pause(attempts: int) -> float:
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempts - 1)))


def _same(one: Notice, other: Notice) -> bool:
    """Whether both are of the same version of an object."""
    return one.kind == other.kind and one.recording == other.recording


def _goes_before(new: Notice, old: Notice) -> bool:
    """Whether what a message says goes before what an earlier one has said of the same object.

    Events are answered by asking the store, removal as well, so they go before a version that was
    listed at some time; of two of these the later one goes.
    """
    if new.recording is None or old.recording is None:
        return new.recording is None and (new.kind == "removed" or old.kind == "created")
    return new.recording.modified_us > old.recording.modified_us
