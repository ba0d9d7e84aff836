"""``process_shard``: recordings in, rows committed. The only place where storage, audio,
transcriber, tokenizers and dataset meet; every runner and queue worker calls it.

Fetching, decoding and cutting run ahead in threads (``intake.py``). The transcriber is given pieces
of many rows and recordings at once, a second batch while it computes the first, tokens are made
meanwhile, and parts are committed behind its back: it does not wait for anything else.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from speechmill.ahead import ahead
from speechmill.dataset.commit import Committed, commit
from speechmill.dataset.growth import place_anew
from speechmill.dataset.schema import utterances_to_table, with_sample_check
from speechmill.errors import ModelError, SpeechmillError
from speechmill.job import Job
from speechmill.machine import WithoutRoom
from speechmill.pipeline.batching import Batch, batched
from speechmill.pipeline.intake import Intake, ReadyPiece, ReadyRecording, Signal
from speechmill.pipeline.isolate import Breaker, all_or_each
from speechmill.pipeline.measure import measure_job_rows
from speechmill.pipeline.resources import Resources, open_resources
from speechmill.pipeline.rows import make_utterance
from speechmill.pipeline.selection import estimate_s
from speechmill.pipeline.shared_encoder import SharedEncoder
from speechmill.pipeline.tokenize import RoundTrip, SampleCheck, tokenize
from speechmill.records import Part, Recording, RecordingDone, Shard, ShardReport

__all__ = ["process_shard"]

COMMIT_EVERY_S: Final = 300.0
"""What a slow model has done is committed so often, also within a part."""

RESCUE_S: Final = 20.0
"""How long a build that ends with an error waits for what is in hand."""

MAX_AHEAD_S: Final = 1200.0
"""Audio on its way to the model, so that memory is bounded, unless one recording is longer."""

BATCHES: Final = 2
"""Batches that the transcriber is given at the same time, so that it never waits for one."""

DETECTED_IN: Final = 3
"""Pieces of a recording, at most, in which its language is detected …"""
DETECTED_OF: Final = 3
"""… and at most one of so many, or detection costs too much."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """A part that was committed to, and the seconds it took."""

    part: Part
    made: Committed
    seconds: float


def process_shard(
    job: Job,
    shard: Shard,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[RecordingDone], None] = lambda _: None,
    commit_every_s: float | None = None,
) -> ShardReport:
    """Make the rows of a shard's recordings and commit each part as soon as its last one is done.

    A recording that fails becomes a failures row, and none of its rows are kept. One that finds no
    room for its temporary files is tried again at the end, alone. ``stop`` is asked between batches
    of pieces; then the recordings that are done are committed, and the report says ``stopped``.
    ``on_done`` hears of each recording. What is done of a part that takes longer is committed every
    ``commit_every_s`` seconds (five minutes, where nothing is said).

    Raises:
        UnavailableError: a store stays down. What was committed stays.
        SpeechmillError: the job itself cannot be done (model, credentials, dataset).
    """
    return _ShardRun(open_resources(job), shard, stop, on_done, commit_every_s).run()


class _ShardRun:
    """One shard on its way."""

    def __init__(
        self,
        resources: Resources,
        shard: Shard,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
        commit_every_s: float | None,
    ) -> None:
        self.resources, self.job, self.shard = resources, resources.job, shard
        self.stop, self.on_done = stop, on_done
        self.commit_every_s = COMMIT_EVERY_S if commit_every_s is None else commit_every_s
        self.parts = shard.parts
        self.missing = {part: len(recordings) for part, recordings in self.parts}
        self.pending: defaultdict[Part, list[ReadyRecording]] = defaultdict(list)
        self.intake = Intake(resources)
        self.batches: deque[Batch] = deque()
        self.sample = SampleCheck(resources.tokenizers)
        self.shared = SharedEncoder(resources.transcriber, resources.tokenizers)
        self.round_trip = RoundTrip(resources) if self.job.round_trip else None
        self.breakers = {measure.name: Breaker() for measure in resources.measures}
        self.committed_at = time.monotonic()
        self.commits: list[Future[list[_Commit]]] = []
        self.done: list[RecordingDone] = []
        self.without_room = WithoutRoom[tuple[Part, Recording]]()

    def run(self) -> ShardReport:
        started = time.monotonic()
        stopped = False
        try:
            for batch in batched(self._prepared(), lambda: self.resources.pace.pieces):
                while len(self.batches) >= BATCHES:
                    self._finish_oldest()
                if stopped := self.stop():
                    break
                self._start(batch)
            while self.batches:
                self._finish_oldest()
            stopped = stopped or not self.without_room.try_again(self._do_alone, self.stop)
            self._commit_pending(list(self.pending))
            commits = [one for f in self.commits for one in f.result()]
        except SpeechmillError:
            self._rescue()
            raise
        finally:
            for batch in self.batches:
                for work in batch.work:
                    work.cancel()
        return ShardReport(
            shard_index=self.shard.index,
            done=tuple(self.done),
            wall_s=time.monotonic() - started,
            commit_s=sum(one.seconds for one in commits),
            conflicts=sum(one.made.conflicts for one in commits),
            mismatch=self.sample.rates,
            stopped=stopped,
            written_bytes=sum(one.made.num_bytes for one in commits),
            filled=tuple({one.part: one.made.audio_s for one in commits}.items()),
        )

    def _rescue(self) -> None:
        """Commit what is done or nearly so, if the sink is not what has failed."""
        deadline = time.monotonic() + RESCUE_S
        if not any(f.done() and f.exception() for f in self.commits):
            with suppress(SpeechmillError):
                while self.batches:
                    work = self.batches[0].work
                    if wait(work, timeout=deadline - time.monotonic()).not_done:
                        break
                    self._finish_oldest()
            self._commit_pending(list(self.pending))
        wait(self.commits, timeout=max(RESCUE_S / 2, deadline - time.monotonic()))

    def _do_alone(self, item: tuple[Part, Recording]) -> None:
        """Do a recording that found no room."""
        ready = [self._begin(item).result()]
        for batch in batched(ready, lambda: self.resources.pace.pieces):
            self._start(batch)
            self._finish_oldest()

    def _prepared(self) -> Iterator[ReadyRecording]:
        """Recordings, decoded and cut, in order of size, so that neighbours are of similar length.

        So many are on their way that the next batch is ready when the model is.
        """
        largest_first = sorted(
            ((part, r) for part, recordings in self.parts for r in recordings),
            key=lambda item: (item[1].size, item[1].key),
            reverse=True,
        )
        pace = self.resources.pace
        for _, ready in ahead(
            largest_first,
            self._begin,
            most=lambda: self.job.fetchers + 2 * pace.pieces,
            cost=lambda item: estimate_s(item[1]),
            most_cost=MAX_AHEAD_S,
        ):
            yield ready

    def _begin(self, item: tuple[Part, Recording]) -> Future[ReadyRecording]:
        threads = self.resources.threads
        fetched = threads.fetching.submit(self.intake.fetch, *item)
        decoded = threads.decoding.submit(self.intake.decode, fetched)
        decoded.add_done_callback(lambda done: done.cancelled() and fetched.cancel())
        return decoded

    def _start(self, batch: Batch) -> None:
        threads = self.resources.threads
        batch.work = [threads.transcribing.submit(self._transcribe_batch, batch)]
        if of_audio := [m for m in self.resources.measures if not m.needs.columns]:
            batch.work.append(
                threads.tokenizing.submit(measure_job_rows, of_audio, batch.rows, self.breakers)
            )
        batch.work += [
            threads.tokenizing.submit(tokenize, tokenizer, i, batch.rows)
            for i, tokenizer in enumerate(self.resources.tokenizers)
            if i not in self.shared
        ]
        self.batches.append(batch)

    def _transcribe_batch(self, batch: Batch) -> None:
        """Transcribe a batch, and make those tokens that transcription has half made."""
        self._transcribe(batch.pieces)
        for i, tokenizer in enumerate(self.resources.tokenizers):
            if i in self.shared:
                tokenize(tokenizer, i, self.shared.left(i, batch.rows))

    def _finish_oldest(self) -> None:
        """Wait for the oldest batch. What ends with it is done, as batches keep their order."""
        batch = self.batches[0]
        for work in batch.work:
            work.result()
        self.sample.check(batch.rows)
        for row in batch.rows:
            row.release()
        self.batches.popleft()
        if self.round_trip:
            self.round_trip.judge([row for ready in batch.ending for row in ready.rows])
        self._measure_columns(batch.ending)
        self._collect(batch.ending)
        for future in self.commits:
            if future.done():
                future.result()  # a commit that has failed ends the build

    def _measure_columns(self, recordings: Sequence[ReadyRecording]) -> None:
        """Make those measures that look at columns of a row, once these are made."""
        measures = [m for m in self.resources.measures if m.needs.columns]
        rows = [row for ready in recordings if ready.is_good for row in ready.rows]
        if measures and rows:
            names = list(dict.fromkeys(name for m in measures for name in m.needs.columns))
            made = [make_utterance(row, self.resources) for row in rows]
            table = utterances_to_table(made, self.resources.schema, self.resources.recipe.id)
            told = table.select(names).to_pylist()
            measure_job_rows(measures, rows, self.breakers, told)

    def _transcribe(self, pieces: Sequence[ReadyPiece]) -> None:
        """Transcribe pieces; if that fails, recording by recording, to find whose fault it was."""
        by_recording: defaultdict[ReadyRecording, list[ReadyPiece]] = defaultdict(list)
        for piece in pieces:
            if piece.row.owner.is_good:
                by_recording[piece.row.owner].append(piece)

        def call(recordings: Sequence[ReadyRecording]) -> None:
            for ready in recordings:
                for signal in ready.signals:
                    self._detect_language(ready, signal)
            self._call([piece for ready in recordings for piece in by_recording[ready]])

        def failed(ready: ReadyRecording, error: Exception) -> None:
            ready.fail("transcribe", error)
            if isinstance(error, ModelError) and self.resources.breaker.failed():
                raise error  # the engine fails again and again: the build ends

        all_or_each(list(by_recording), call, failed)

    def _call(self, pieces: Sequence[ReadyPiece]) -> None:
        transcriber = self.resources.transcriber
        speech = [p.speech(transcriber.sample_rate, transcriber.max_speech_s) for p in pieces]
        with self.resources.pace.call(len(pieces)) as cost:
            transcripts = self.shared.transcribe(pieces, speech)
        self.resources.breaker.worked()
        total_s = sum(p.duration_s for p in pieces)
        for piece, transcript in zip(pieces, transcripts, strict=True):
            piece.transcript = transcript
            with piece.row.lock:
                piece.row.transcribe_s += cost.seconds * piece.duration_s / total_s

    def _detect_language(self, ready: ReadyRecording, signal: Signal) -> None:
        """Detect the language once for all of a signal that is cut into pieces."""
        pieces = [piece for row in ready.rows if row.signal is signal for piece in row.pieces]
        if self.job.language is not None or len(pieces) < 2:
            return
        with signal.lock:
            if signal.language_detected:
                return
            transcriber = self.resources.transcriber
            count = min(DETECTED_IN, -(-len(pieces) // DETECTED_OF))
            stretches = [
                pieces[len(pieces) * i // count : len(pieces) * (i + 1) // count]
                for i in range(count)
            ]
            chosen = [max(some, key=lambda p: p.piece.voiced_s) for some in stretches]
            signal.language = transcriber.detect_language(
                [p.speech(transcriber.sample_rate, transcriber.max_speech_s) for p in chosen]
            )
            signal.language_detected = True

    def _collect(self, recordings: Sequence[ReadyRecording]) -> None:
        """Put recordings to their parts; commit those that are complete, or all when it is time."""
        complete = []
        for ready in recordings:
            ready.release()
            item = ready.part, ready.recording
            if ready.found_no_room and self.without_room.takes(item):
                continue
            self.pending[ready.part].append(ready)
            self.missing[ready.part] -= 1
            if not self.missing[ready.part]:
                complete.append(ready.part)
            done = RecordingDone(
                file_name=ready.recording.file_name,
                num_bytes=ready.recording.size,
                duration_s=ready.duration_s,
                num_rows=len(ready.rows) if ready.is_good else 0,
                fetch_s=ready.fetch_s,
                decode_s=ready.decode_s,
                transcribe_s=sum(row.transcribe_s for row in ready.rows),
                tokenize_s=sum(row.tokenize_s for row in ready.rows),
                failure=ready.failure,
                gone=ready.gone,
            )
            self.done.append(done)
            self.on_done(done)
        if time.monotonic() - self.committed_at > self.commit_every_s:
            complete = list(self.pending)
        self._commit_pending(complete)

    def _commit_pending(self, parts: Sequence[Part]) -> None:
        for part in parts:
            outcome = self.pending.pop(part)
            self.commits.append(
                self.resources.threads.committing.submit(self._commit, part, outcome)
            )
            self.committed_at = time.monotonic()

    def _commit(self, part: Part, outcome: Sequence[ReadyRecording]) -> list[_Commit]:
        """Commit to a part; what it is sealed for, to the parts that its folder has by now."""
        started = time.perf_counter()
        good = [r for r in outcome if r.is_good]
        recipe = self.resources.recipe.id
        schema = with_sample_check(self.resources.schema, self.sample.rates)
        made = commit(
            self.resources.sink,
            part,
            utterances_to_table(
                [make_utterance(row, self.resources) for r in good for row in r.rows],
                schema,
                recipe,
            ),
            [r.failure for r in outcome if r.failure],
            recipe=recipe,
            replaces={r.recording.file_name: r.recording.replaces for r in good},
            is_current=self.resources.is_current,
        )
        done = [_Commit(part, made, time.perf_counter() - started)]
        if made.refused:
            anew = place_anew(self.resources.sink, part, made.refused, self.resources.schema)
            moved: defaultdict[Part, list[ReadyRecording]] = defaultdict(list)
            for ready in good:
                if (name := ready.recording.file_name) in anew:
                    moved[anew[name]].append(ready)
            for target, some in moved.items():
                done += self._commit(target, some)
        return done
