"""``work``: add the recordings of a queue to the dataset, until it is stopped.

One thread talks to the broker and tracks the messages; it waits for nothing else, so heartbeats go
on however long a recording takes. Two batches are processed at a time, as two shards in a build. A
message is acknowledged when all that it requests is settled: committed, existing, not selected, or
a dead letter that the broker has confirmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from speechmill.dataset.run_log import RunLog
from speechmill.errors import (
    BrokerError,
    JobError,
    SourceChangedError,
    SpeechmillError,
    StorageError,
)
from speechmill.pipeline.listing import below_sink
from speechmill.pipeline.resources import Resources
from speechmill.pipeline.selection import selection
from speechmill.queues.base import Broker, Consumer, Delivery
from speechmill.queues.batch import BatchProcessor, Outcome, Request
from speechmill.queues.gathering import SUSPECT_REDELIVERIES, BatchSize, max_suspects, whole_groups
from speechmill.queues.in_hand import (
    HeldMessage,
    PendingDeadLetter,
    PendingRecording,
    RunningBatch,
    supersedes,
)
from speechmill.queues.letter_box import LetterBox
from speechmill.queues.notices import Notice, PoisonError, key_below, read_notices
from speechmill.queues.options import WorkOptions
from speechmill.queues.tally import Observer, WorkTally
from speechmill.records import ShardReport, printable
from speechmill.storage import inside

__all__ = ["Worker"]

PARALLEL_BATCHES = 2  # while the model works on one, the other is fetched or committed
COMMIT_EVERY_S = 20.0  # within a part: what a kill may cost
TICK_S = 0.2  # of waiting for messages in each round
HURRY_S = 0.5  # without a message, until an incomplete batch starts under --until-empty
LAG_EVERY_S = 5.0  # the broker is asked how many messages wait
IDLE_S = 1.0  # without a message, until the queue may count as empty under --until-empty
FORESEEN = (SpeechmillError, PoisonError)  # errors that say what is wrong
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a retry, doubling


class Worker:
    """Works on the messages of one queue until it is stopped, or the queue is empty.

    ``tools`` are settled with the sink. ``broker`` is the queue that ``consumer`` receives from.
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
        self._letters = LetterBox(broker.dead_letters())
        self._batches = BatchProcessor(tools, commit_every_s=COMMIT_EVERY_S)
        self._reason = selection(tools.job)
        self._sink_below = inside(tools.source.url, tools.sink.url)
        self._size = BatchSize(options.batch_recordings)
        self._pool = ThreadPoolExecutor(PARALLEL_BATCHES, thread_name_prefix="batch")
        self._waiting: dict[str, PendingRecording] = {}  # by key, in order of arrival
        self._working: dict[str, PendingRecording] = {}
        self._running: list[RunningBatch] = []
        self._settled: list[Delivery] = []
        self._in_hand: set[HeldMessage] = set()
        self._last_message, self._lag_at = time.monotonic(), 0.0
        self._troubles = 0  # batches in a row that a store has failed
        self._giving_up = False

    def run(self) -> None:
        """Work until the end.

        Raises:
            BrokerError: the broker stays away, or refuses.
            UnavailableError: a store stays down.
            SpeechmillError: the job cannot be done.
        """
        try:
            while not (self.stop() and not self._running):
                self._collect_batches()
                self._receive()
                self._start_batches()
                self._send_dead_letters()
                self._acknowledge()
                self._report_progress()
                if self.options.until_empty and self._is_done():
                    break
        finally:
            self._giving_up = True
            wait([b.future for b in self._running], self.options.grace_s)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._acknowledge()
            self._letters.close()

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        """Parse messages, and note the recordings that they request."""
        for delivery in deliveries:
            self.tally.messages += 1
            held = HeldMessage(delivery)
            self._in_hand.add(held)
            try:
                requests = self._requests(read_notices(delivery.message))
            except Exception as error:  # noqa: BLE001 - the boundary of a message: it is set aside
                reason = str(error) if isinstance(error, FORESEEN) else repr(error)
                self._bury(PendingDeadLetter(reason, [held], error=type(error).__name__))
                continue
            held.waits_for = len(requests)
            for request in requests:
                self._add_request(request, held)
            if not requests:
                self._settle(held)

    def _receive(self) -> None:
        size = self._size.size if self.consumer.shares else self.options.batch_recordings
        room = max(0, (PARALLEL_BATCHES + 1) * size - len(self._in_hand))
        if self.stop() or self._letters:
            room = 0
        some = self.consumer.receive(room, TICK_S)
        if some:
            self._last_message = time.monotonic()
        self._forget_lost()
        self._take(some)

    def _forget_lost(self) -> None:
        """Drop messages that the broker will deliver again, here or elsewhere."""
        lost = {h for h in self._in_hand if not self.consumer.holds(h.delivery)}
        if not lost:
            return
        self._in_hand -= lost
        for key, wanted in list(self._waiting.items()):
            wanted.held = [h for h in wanted.held if h not in lost]
            if not wanted.held:
                del self._waiting[key]
        self._letters.forget(lost)

    def _requests(self, notices: Sequence[Notice]) -> list[Request]:
        """What a message asks for; none of it is begun if a part makes no sense.

        Raises:
            SourceChangedError: it is of another source.
            Exception: whatever a message can make our own code raise.
        """
        requests = []
        for notice in notices:
            here = self.tools.source.url
            key = key_below(here, notice)
            if key is None and notice.is_ours:
                raise SourceChangedError(
                    f"it is of the source {notice.source}, this dataset is of {here}"
                )
            if key is None or self._is_left_out(key, notice):
                self.tally.verdicts["left out"] += 1
                continue
            requests.append(Request(notice, key))
            self._batches.part(requests[-1])  # which it must have, to be put into a batch
        return requests

    def _is_left_out(self, key: str, notice: Notice) -> bool:
        if self._sink_below is not None and below_sink(key, self._sink_below):
            return True
        if notice.kind == "removed" and not self.options.drop_removed:
            return True
        return self._reason(printable(key)) is not None

    def _add_request(self, request: Request, held: HeldMessage) -> None:
        key, notice = request.key, request.notice
        working = self._working.get(key)
        if working and notice.is_ours and notice.recording == working.request.notice.recording:
            working.held.append(held)  # twice, or again after the connection was lost
            return
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = PendingRecording(request, [held], time.monotonic())
            return
        waiting.held.append(held)
        if supersedes(notice, waiting.request.notice):
            waiting.request = request

    def _start_batches(self) -> None:
        while len(self._running) < PARALLEL_BATCHES and not (self.stop() or self._giving_up):
            chosen, exclusive = self._next_batch()
            if not chosen:
                return
            for wanted in chosen:
                key = wanted.request.key
                del self._waiting[key]
                self._working[key] = wanted
            self.consumer.begin([h.delivery for w in chosen for h in w.held])
            requests = [w.request for w in chosen]
            future = self._pool.submit(self._batches.process, requests, stop=self._stopping)
            self._running.append(RunningBatch(chosen, time.monotonic(), future, exclusive))

    def _stopping(self) -> bool:
        return self._giving_up or self.stop()

    def _next_batch(self) -> tuple[list[PendingRecording], bool]:
        """Choose the next batch, if it is time for one; and whether it must run alone."""
        now = time.monotonic()
        ready = [
            w
            for key, w in self._waiting.items()
            if w.not_before <= now and key not in self._working
        ]
        if not ready or any(batch.exclusive for batch in self._running):
            return [], False
        if apart := next((w for w in ready if w.apart), None):
            return [apart], False
        if suspects := self._suspects(ready):
            return ([], False) if self._running else (suspects, True)
        size = self._size.size
        due = ready[0].since + self.options.linger_s <= now
        hurry = self.options.until_empty and now - self._last_message > HURRY_S
        if len(ready) < size and not (due or hurry or ready[0].attempts):
            return [], False
        return whole_groups(ready, lambda w: self._batches.part(w.request), size), False

    def _suspects(self, ready: Sequence[PendingRecording]) -> list[PendingRecording]:
        """Choose what workers may have died of, so few that it will be alone in the end."""
        found = [w for w in ready if self._batches.is_suspect(w.request)]
        most = 1
        if not found:
            redeliveries = max(w.redeliveries for w in ready)
            if redeliveries < SUSPECT_REDELIVERIES:
                return []
            most = max_suspects(redeliveries)
            found = [w for w in ready if w.redeliveries == redeliveries]
        found[0].request.alone = most == 1
        return found[:most]

    def _collect_batches(self) -> None:
        for batch in [b for b in self._running if b.future.done()]:
            self._running.remove(batch)
            for wanted in batch.wanted:
                self._working.pop(wanted.request.key, None)
            try:
                outcomes, report = batch.future.result()
            except StorageError as error:
                self._retry_batch(batch, error)
                continue
            except Exception as error:
                if isinstance(error, SpeechmillError) and not isinstance(error, JobError):
                    raise
                self._take_apart(batch, error)
                continue
            self._troubles = 0
            self._count_batch(batch, report)
            by_request = {w.request: w for w in batch.wanted}
            for outcome in outcomes:
                self._settle_outcome(by_request[outcome.request], outcome)

    def _count_batch(self, batch: RunningBatch, report: ShardReport) -> None:
        seconds = time.monotonic() - batch.started
        self._size.learn(len(report.done), seconds)
        self.tally.add(report, seconds, self._size.size)
        for done in report.done:
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

    def _retry_batch(self, batch: RunningBatch, error: StorageError) -> None:
        """Put a batch back whose store has failed, not its recordings: with ever longer pauses."""
        self._troubles += 1
        if self._troubles >= self.job.max_attempts or self._stopping():
            raise error
        pause_s = _backoff_s(self._troubles)
        self._warn(f"{error}; trying again in {pause_s:.0f} s", error)
        for wanted in batch.wanted:
            self._put_back(wanted, pause_s)

    def _take_apart(self, batch: RunningBatch, error: Exception) -> None:
        """Try the recordings of a batch one by one after an error that nobody foresaw, so that only
        the one that causes it becomes a dead letter."""
        if len(batch.wanted) == 1:
            (wanted,) = batch.wanted
            name, what = wanted.request.file_name, type(error).__name__
            self._bury(PendingDeadLetter(repr(error), wanted.held, name, "worker", what))
            return
        for wanted in batch.wanted:
            wanted.apart = True
            self._put_back(wanted, 0.0)

    def _put_back(self, wanted: PendingRecording, pause_s: float) -> None:
        """Put a recording back. If a newer message has arrived meanwhile, it takes over."""
        wanted.not_before = time.monotonic() + pause_s
        newer = self._waiting.setdefault(wanted.request.key, wanted)
        if newer is not wanted:
            newer.held += wanted.held

    def _settle_outcome(self, wanted: PendingRecording, outcome: Outcome) -> None:
        """Settle a recording's messages, retry it, or give it up."""
        self.tally.verdicts[outcome.verdict] += 1
        if outcome.verdict == "unfinished":
            self._put_back(wanted, 0.0)
            return
        if outcome.verdict not in ("failed", "missing"):
            for held in wanted.held:
                self._recording_settled(held)
            return
        failure, attempts = outcome.failure, wanted.attempts + 1
        # A retry does not mend a recording that cannot be decoded; a missing one may still arrive.
        final = failure is not None and failure.stage in ("decode", "worker")
        if not final and attempts < self.job.max_attempts:
            wanted.attempts = attempts
            self._put_back(wanted, _backoff_s(attempts))
            return
        name = outcome.request.file_name
        reason, stage, error = f"there is no such object: {name}", "fetch", "NotFoundError"
        if failure is not None:
            reason, stage, error = failure.message, failure.stage, failure.error
        self._bury(PendingDeadLetter(reason, wanted.held, name, stage, error, attempts))

    def _recording_settled(self, held: HeldMessage) -> None:
        held.waits_for -= 1
        if held.waits_for <= 0:
            self._settle(held)

    def _settle(self, held: HeldMessage) -> None:
        if held in self._in_hand:
            self._in_hand.discard(held)
            self._settled.append(held.delivery)

    def _acknowledge(self) -> None:
        if self._settled:
            self.consumer.ack(self._settled)
        self._settled = []

    def _bury(self, dead: PendingDeadLetter) -> None:
        """Note a dead letter to send, if one of its messages is still ours."""
        dead.held = [h for h in dead.held if h in self._in_hand]
        if dead.held:
            self._letters.add(dead)

    def _send_dead_letters(self) -> None:
        try:
            sent = self._letters.send(FIRST_PAUSE_S)
        except BrokerError as error:
            self._warn(f"dead letters cannot be sent: {error}; trying again", error)
            return
        for dead in sent:
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
                self._recording_settled(held)

    def _report_progress(self) -> None:
        self.tally.in_hand = len(self._in_hand)
        now = time.monotonic()
        if now - self._lag_at > LAG_EVERY_S:
            self._lag_at = now
            self.tally.lag = self.consumer.lag()
        self.observer.progress(self.tally)
        self.log.flush()

    def _is_done(self) -> bool:
        idle = time.monotonic() - self._last_message > IDLE_S
        busy = self._in_hand or self._running or self._letters or self._settled
        return idle and not busy and self.consumer.is_empty()

    def _warn(self, text: str, error: SpeechmillError) -> None:
        self.observer.said(text)
        self.log.event("trouble", "warning", error=type(error).__name__, message=str(error))


def _backoff_s(attempts: int) -> float:
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempts - 1)))
