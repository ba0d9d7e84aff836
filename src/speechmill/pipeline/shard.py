"""``process_shard``: recordings in, rows committed. The only place where storage, audio,
transcriber, tokenizers and dataset meet; every runner and queue worker calls it.

Fetching, decoding and cutting run ahead in threads (``intake.py``). The transcriber is given pieces
of many rows and recordings at once, a second group while it computes the first, tokens are made
meanwhile, and parts are committed behind its back: it does not wait for anything else.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from speechmill.dataset.commit import Committed, commit
from speechmill.dataset.growth import place_anew
from speechmill.dataset.schema import utterances_to_table, with_sample_check
from speechmill.errors import ModelError, SpeechmillError
from speechmill.job import Job
from speechmill.pipeline.intake import Intake, ReadyPiece, ReadyRecording, ReadyRow
from speechmill.pipeline.resources import Tools, open_tools
from speechmill.pipeline.selection import estimate_s
from speechmill.pipeline.shared_encoder import SharedEncoder
from speechmill.pipeline.tokenize import RoundTrip, SampleCheck, tokenize
from speechmill.records import Part, RecordingDone, Shard, ShardReport, Utterance
from speechmill.storage import Fetched
from speechmill.text.transcripts import join_transcripts, no_voice

__all__ = ["process_shard"]

COMMIT_EVERY_S = 300.0  # what a slow model has done is committed so often, also within a part
RESCUE_S = 20.0  # how long a build that ends with an error waits for what is in hand
MAX_AHEAD_S = 1200.0  # audio on its way to the model, unless one recording alone is longer
MAX_GROUP_S = 1200.0  # audio that the transcriber is given at once
GROUPS = 2  # that it is given at the same time, so that it never waits
HEARD = 3  # pieces of a recording, at most, in which its language is detected


@dataclass(slots=True)
class _Group:
    """What the transcriber is given in one call, and what ends with it."""

    pieces: list[ReadyPiece] = field(default_factory=list)
    rows: list[ReadyRow] = field(default_factory=list)  # that begin in it
    ending: list[ReadyRecording] = field(default_factory=list)
    audio_s: float = 0.0
    work: list[Future[None]] = field(default_factory=list)  # its transcription, and its tokens

    def __len__(self) -> int:
        return max(len(self.pieces), len(self.rows), len(self.ending))

    def takes(self, piece: ReadyPiece, most: int) -> bool:
        """Whether there is room for one more."""
        fits = self.audio_s + piece.duration_s <= MAX_GROUP_S or not self.pieces
        return fits and len(self) < most

    def add(self, piece: ReadyPiece) -> None:
        self.pieces.append(piece)
        self.audio_s += piece.duration_s


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

    A recording that fails becomes a failures row, and none of its rows are kept. ``stop`` is asked
    between groups of pieces; then the recordings that are done are committed, and the report says
    ``stopped``. ``on_done`` hears of each recording. What is done of a part that takes longer is
    committed every ``commit_every_s`` seconds (five minutes, where nothing is said).

    Raises:
        UnavailableError: a store stays down. What was committed stays.
        SpeechmillError: the job itself cannot be done (model, credentials, dataset).
    """
    return _ShardRun(open_tools(job), shard, stop, on_done, commit_every_s).run()


class _ShardRun:
    """One shard on its way."""

    def __init__(
        self,
        tools: Tools,
        shard: Shard,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
        commit_every_s: float | None,
    ) -> None:
        self.tools, self.job, self.shard = tools, tools.job, shard
        self.stop, self.on_done = stop, on_done
        self.commit_every_s = COMMIT_EVERY_S if commit_every_s is None else commit_every_s
        self.parts = shard.parts
        self.missing = {part: len(recordings) for part, recordings in self.parts}
        self.pending: defaultdict[Part, list[ReadyRecording]] = defaultdict(list)
        self.intake = Intake(tools)
        self.fetching: deque[Future[tuple[ReadyRecording, Fetched | None]]] = deque()
        self.flying: deque[tuple[float, Future[ReadyRecording]]] = deque()
        self.groups: deque[_Group] = deque()
        self.sample = SampleCheck(tools.tokenizers)
        self.shared = SharedEncoder(tools.transcriber, tools.tokenizers)
        self.round_trip = RoundTrip(tools) if self.job.round_trip else None
        self.committed_at = time.monotonic()
        self.commits: list[Future[list[_Commit]]] = []
        self.done: list[RecordingDone] = []

    def run(self) -> ShardReport:
        started = time.monotonic()
        stopped = False
        try:
            for group in self._grouped(self._prepared()):
                while len(self.groups) >= GROUPS:
                    self._finish_oldest()
                if stopped := self.stop():
                    break
                self._start(group)
            while self.groups:
                self._finish_oldest()
            self._commit_pending(list(self.pending))
            commits = [one for f in self.commits for one in f.result()]
        except SpeechmillError:
            self._rescue()
            raise
        finally:
            for group in self.groups:
                for work in group.work:
                    work.cancel()
            for fetched in self.fetching:
                fetched.cancel()
            for _, decoded in self.flying:
                decoded.cancel()
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
                while self.groups:
                    work = self.groups[0].work
                    if wait(work, timeout=deadline - time.monotonic()).not_done:
                        break
                    self._finish_oldest()
            self._commit_pending(list(self.pending))
        wait(self.commits, timeout=max(RESCUE_S / 2, deadline - time.monotonic()))

    def _prepared(self) -> Iterator[ReadyRecording]:
        """Recordings, decoded and cut, in order of size, so that neighbours are of similar length.

        So many are on their way that the next group is ready when the model is.
        """
        waiting = deque(
            sorted(
                ((part, r) for part, recordings in self.parts for r in recordings),
                key=lambda item: (item[1].size, item[1].key),
                reverse=True,
            )
        )
        flying = self.flying
        flying_s = 0.0
        while waiting or flying:
            ahead = self.job.fetchers + 2 * self.tools.pace.pieces
            while waiting and (
                not flying
                or (len(flying) < ahead and flying_s + estimate_s(waiting[0][1]) <= MAX_AHEAD_S)
            ):
                part, recording = waiting.popleft()
                estimated_s = estimate_s(recording)
                fetched = self.tools.fetchers.submit(self.intake.fetch, part, recording)
                self.fetching.append(fetched)
                decoded = self.tools.decoders.submit(self.intake.decode, fetched)
                flying.append((estimated_s, decoded))
                flying_s += estimated_s
            estimated_s, future = flying.popleft()
            self.fetching.popleft()
            flying_s -= estimated_s
            yield future.result()

    def _grouped(self, recordings: Iterator[ReadyRecording]) -> Iterator[_Group]:
        """Pieces of rows of recordings, together until a group is large enough."""
        group = _Group()
        for ready in recordings:
            for row in ready.rows:
                if not ready.is_good:
                    break
                for i, piece in enumerate(row.pieces):
                    if not group.takes(piece, self.tools.pace.pieces):
                        yield group
                        group = _Group()
                    group.add(piece)
                    if i == 0:
                        group.rows.append(row)
                if not row.pieces:
                    group.rows.append(row)
            group.ending.append(ready)
            if len(group) >= self.tools.pace.pieces:
                yield group
                group = _Group()
        if len(group):
            yield group

    def _start(self, group: _Group) -> None:
        tools = self.tools
        group.work = [tools.transcribing.submit(self._hear, group)]
        group.work += [
            tools.tokenizing.submit(tokenize, tokenizer, i, group.rows)
            for i, tokenizer in enumerate(tools.tokenizers)
            if i not in self.shared
        ]
        self.groups.append(group)

    def _hear(self, group: _Group) -> None:
        """Transcribe a group, and make those tokens that transcription has half made."""
        self._transcribe(group.pieces)
        for i, tokenizer in enumerate(self.tools.tokenizers):
            if i in self.shared:
                tokenize(tokenizer, i, self.shared.left(i, group.rows))

    def _finish_oldest(self) -> None:
        """Wait for the oldest group. What ends with it is done, as groups keep their order."""
        group = self.groups[0]
        for work in group.work:
            work.result()
        self.sample.check(group.rows)
        for row in group.rows:
            row.release()
        self.groups.popleft()
        if self.round_trip:
            self.round_trip.judge([row for ready in group.ending for row in ready.rows])
        self._collect(group.ending)
        self._raise_failed_commits()

    def _transcribe(self, pieces: Sequence[ReadyPiece]) -> None:
        """Transcribe a group; if that fails, recording by recording, to find whose fault it was."""
        pieces = [p for p in pieces if p.row.owner.is_good]
        if not pieces:
            return
        try:
            self._call(pieces)
        except Exception as error:
            owners = {p.row.owner: None for p in pieces}
            if len(owners) > 1:
                for owner in owners:
                    self._transcribe([p for p in pieces if p.row.owner is owner])
                return
            pieces[0].row.owner.fail("transcribe", error)
            if isinstance(error, ModelError) and self.tools.model_failed():
                raise  # the engine fails again and again: the build ends

    def _call(self, pieces: Sequence[ReadyPiece]) -> None:
        transcriber = self.tools.transcriber
        for owner in {p.row.owner: None for p in pieces}:
            self._hear_language(owner)
        speech = [p.speech(transcriber.sample_rate, transcriber.max_speech_s) for p in pieces]
        listening: dict[str, Any] = {}
        if self.shared:
            listening["on_encoded"] = self.shared.listener(pieces, speech)
        with self.tools.pace.call(len(pieces)) as cost:
            transcripts = transcriber.transcribe(speech, **listening)
        self.tools.model_worked()
        total_s = sum(p.duration_s for p in pieces)
        for piece, transcript in zip(pieces, transcripts, strict=True):
            piece.transcript = transcript
            with piece.row.lock:
                piece.row.transcribe_s += cost.seconds * piece.duration_s / total_s

    def _hear_language(self, ready: ReadyRecording) -> None:
        """Detect the language once for all of a recording that is cut into pieces."""
        pieces = [piece for row in ready.rows for piece in row.pieces]
        if self.job.language is not None or len(pieces) < 2:
            return
        with ready.lock:
            if ready.language_heard:
                return
            transcriber = self.tools.transcriber
            count = min(HEARD, -(-len(pieces) // HEARD))  # at most a third, or it costs too much
            stretches = [
                pieces[len(pieces) * i // count : len(pieces) * (i + 1) // count]
                for i in range(count)
            ]
            chosen = [max(some, key=lambda p: p.piece.voiced_s) for some in stretches]
            ready.language = transcriber.detect_language(
                [p.speech(transcriber.sample_rate, transcriber.max_speech_s) for p in chosen]
            )
            ready.language_heard = True

    def _collect(self, recordings: Sequence[ReadyRecording]) -> None:
        """Put recordings to their parts; commit those that are complete, or all when it is time."""
        complete = []
        for ready in recordings:
            ready.release()
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
            self.commits.append(self.tools.committing.submit(self._commit, part, outcome))
            self.committed_at = time.monotonic()

    def _commit(self, part: Part, outcome: Sequence[ReadyRecording]) -> list[_Commit]:
        """Commit to a part; what it is sealed for, to the parts that its folder has by now."""
        started = time.perf_counter()
        good = [r for r in outcome if r.is_good]
        recipe = self.tools.recipe.id
        schema = with_sample_check(self.tools.schema, self.sample.rates)
        made = commit(
            self.tools.sink,
            part,
            utterances_to_table(
                [self._utterance(row) for r in good for row in r.rows], schema, recipe
            ),
            [r.failure for r in outcome if r.failure],
            recipe=recipe,
            replaces={r.recording.file_name: r.recording.replaces for r in good},
            is_current=self.tools.is_current,
        )
        done = [_Commit(part, made, time.perf_counter() - started)]
        if made.refused:
            anew = place_anew(self.tools.sink, part, made.refused, self.tools.schema)
            moved: defaultdict[Part, list[ReadyRecording]] = defaultdict(list)
            for ready in good:
                if (name := ready.recording.file_name) in anew:
                    moved[anew[name]].append(ready)
            for target, some in moved.items():
                done += self._commit(target, some)
        return done

    def _raise_failed_commits(self) -> None:
        for future in self.commits:
            if future.done():
                future.result()

    def _utterance(self, row: ReadyRow) -> Utterance:
        """A row that is done. What the recording cost is shared by its rows."""
        ready, cut = row.owner, row.row
        transcripts = [p.transcript for p in row.pieces if p.transcript is not None]
        if len(transcripts) < len(row.pieces) or len(row.codes) < len(self.tools.tokenizers):
            raise SpeechmillError(f"{ready.recording.file_name} was committed before it was done")
        share = row.duration_s / sum(r.duration_s for r in ready.rows)
        return Utterance(
            recording=ready.recording,
            folder_name=ready.folder_name,
            start_s=cut.start_s,
            end_s=cut.end_s,
            sample_rate=ready.sample_rate,
            channels=ready.channels,
            transcript=join_transcripts([p.piece.start_s for p in row.pieces], transcripts)
            if transcripts
            else no_voice(self.tools.language, ready.voice_highest or 0.0),
            codes=tuple(codes for _, codes in sorted(row.codes.items())),
            round_trip_cer=tuple(row.round_trip_cer.get(i) for i in range(len(row.codes))),
            flags=ready.flags,
            voiced_s=cut.voiced_s,
            fetch_s=share * ready.fetch_s,
            decode_s=share * ready.decode_s,
            transcribe_s=row.transcribe_s,
            tokenize_s=row.tokenize_s,
        )
