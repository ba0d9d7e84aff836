"""``process_shard``: recordings in, rows committed. The only place where storage, audio,
transcriber, tokenizers and dataset meet; every runner and queue worker calls it.

Fetching and decoding run ahead in threads, tokens are made while the model transcribes, and parts
are committed behind its back, so that the model does not wait for the network.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from speechmill import audio
from speechmill.dataset.commit import commit
from speechmill.dataset.schema import utterances_to_table
from speechmill.errors import (
    ModelError,
    NotFoundError,
    SpeechmillError,
    StorageError,
    UnavailableError,
)
from speechmill.job import Job
from speechmill.records import (
    Codes,
    Failure,
    Part,
    Recording,
    RecordingDone,
    Shard,
    ShardReport,
    Stage,
    Transcript,
    Utterance,
    Waveform,
)
from speechmill.selection import estimate_s
from speechmill.tools import MODEL_ERRORS, Tools, open_tools

__all__ = ["process_shard"]

COMMIT_EVERY_S = 300.0  # what a slow model has done is committed so often, also within a part
RESCUE_S = 10.0  # how long a build that ends with an error waits for what is being committed
MAX_AHEAD_S = 3600.0  # audio on its way to the model, unless one recording alone is longer
MAX_BATCH_S = 120.0  # audio in a batch, likewise; it bounds how long a stop takes


@dataclass(slots=True)
class _Ready:
    """A recording that is fetched and decoded, on its way to the model; or its failure."""

    part: Part
    recording: Recording
    fetch_s: float = 0.0
    decode_s: float = 0.0
    decoded: audio.Decoded | None = None
    waveforms: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # by sample rate, Hz
    failure: Failure | None = None
    gone: bool = False
    transcript: Transcript | None = None
    codes: list[Codes] = field(default_factory=list)
    transcribe_s: float = 0.0
    tokenize_s: float = 0.0

    @property
    def duration_s(self) -> float:
        return self.decoded.waveform.duration_s if self.decoded else 0.0

    def fail(self, stage: Stage, error: BaseException) -> None:
        self.failure = Failure(
            self.recording, self.part.folder_name, stage, type(error).__name__, str(error)
        )


@contextmanager
def _recorded(ready: _Ready, stage: Stage) -> Iterator[None]:
    """The boundary at which whatever goes wrong with one recording becomes its failure."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - one recording must not take the others along
        ready.fail(stage, error)


def process_shard(
    job: Job,
    shard: Shard,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[RecordingDone], None] = lambda _: None,
) -> ShardReport:
    """Make the rows of a shard's recordings and commit each part as soon as its last one is done.

    A recording that fails becomes a failures row. ``stop`` is asked between batches; then what is
    done is committed, and the report says ``stopped``. ``on_done`` hears of each recording.

    Raises:
        UnavailableError: a store stays down. What was committed stays.
        SpeechmillError: the job itself cannot be done (model, credentials, dataset).
    """
    return _ShardRun(open_tools(job), shard, stop, on_done).run()


class _ShardRun:
    """One shard on its way."""

    def __init__(
        self,
        tools: Tools,
        shard: Shard,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> None:
        self.tools, self.job, self.shard = tools, tools.job, shard
        self.stop, self.on_done = stop, on_done
        self.missing = {part: len(recordings) for part, recordings in shard.parts}
        self.pending: defaultdict[Part, list[_Ready]] = defaultdict(list)
        self.fetching: deque[Future[tuple[_Ready, bytes]]] = deque()
        self.flying: deque[tuple[float, Future[_Ready]]] = deque()
        self.committed_at = time.monotonic()
        self.commits: list[Future[tuple[int, float]]] = []
        self.done: list[RecordingDone] = []
        rates = {tools.transcriber.sample_rate, *(t.sample_rate for t in tools.tokenizers)}
        self.rates = sorted(rates)

    def run(self) -> ShardReport:
        started = time.monotonic()
        stopped = False
        try:
            for batch in self._batches(self._prepared()):
                self._transcribe_and_tokenize(batch)
                self._collect(batch)
                self._raise_failed_commits()
                if self.stop():
                    stopped = True
                    break
            self._commit_pending(list(self.pending))
            commits = [f.result() for f in self.commits]
        except SpeechmillError:
            self._rescue()
            raise
        finally:
            for fetched in self.fetching:
                fetched.cancel()
            for _, decoded in self.flying:
                decoded.cancel()
        return ShardReport(
            shard_index=self.shard.index,
            done=tuple(self.done),
            wall_s=time.monotonic() - started,
            commit_s=sum(seconds for _, seconds in commits),
            conflicts=sum(conflicts for conflicts, _ in commits),
            stopped=stopped,
        )

    def _rescue(self) -> None:
        """Commit what is done, if the sink is not what has failed."""
        if not any(f.done() and f.exception() for f in self.commits):
            self._commit_pending(list(self.pending))
        wait(self.commits, timeout=RESCUE_S)

    def _prepared(self) -> Iterator[_Ready]:
        """Recordings, decoded, in order of size, so that neighbours are of similar length.

        So many are on their way that the next batch is ready when the model is.
        """
        waiting = deque(
            sorted(
                ((part, r) for part, recordings in self.shard.parts for r in recordings),
                key=lambda item: (item[1].size, item[1].key),
                reverse=True,
            )
        )
        flying = self.flying
        flying_s = 0.0
        ahead = self.job.fetchers + 2 * self.job.batch_size
        while waiting or flying:
            while waiting and (
                not flying
                or (len(flying) < ahead and flying_s + estimate_s(waiting[0][1]) <= MAX_AHEAD_S)
            ):
                part, recording = waiting.popleft()
                estimated_s = estimate_s(recording)
                fetched = self.tools.fetchers.submit(self._fetched, part, recording)
                self.fetching.append(fetched)
                flying.append((estimated_s, self.tools.decoders.submit(self._decoded, fetched)))
                flying_s += estimated_s
            estimated_s, future = flying.popleft()
            self.fetching.popleft()
            flying_s -= estimated_s
            yield future.result()

    def _batches(self, ready: Iterator[_Ready]) -> Iterator[list[_Ready]]:
        batch: list[_Ready] = []
        batch_s = 0.0
        for one in ready:
            if batch and batch_s + one.duration_s > MAX_BATCH_S:
                yield batch
                batch, batch_s = [], 0.0
            batch.append(one)
            batch_s += one.duration_s
            if len(batch) == self.job.batch_size:
                yield batch
                batch, batch_s = [], 0.0
        if batch:
            yield batch

    def _fetched(self, part: Part, recording: Recording) -> tuple[_Ready, bytes]:
        ready = _Ready(part, recording)
        started = time.perf_counter()
        data = b""
        with _recorded(ready, "fetch"):
            data = self._fetch(ready)
        ready.fetch_s = time.perf_counter() - started
        return ready, data

    def _decoded(self, fetched: Future[tuple[_Ready, bytes]]) -> _Ready:
        """Decode, and resample to each rate that is needed."""
        ready, data = fetched.result()
        if ready.failure or ready.gone:
            return ready
        started = time.perf_counter()
        with _recorded(ready, "decode"):
            decoded = audio.decode(data, keep_damaged=self.job.keep_damaged)
            for rate in self.rates:
                ready.waveforms[rate] = audio.resample(decoded.waveform, rate).samples
            # The row needs the rest of it only; the samples are not held twice.
            length = np.broadcast_to(np.float32(0), decoded.waveform.samples.shape)
            ready.decoded = replace(decoded, waveform=Waveform(length, decoded.sample_rate))
        ready.decode_s = time.perf_counter() - started
        return ready

    def _fetch(self, ready: _Ready) -> bytes:
        planned = ready.recording
        try:
            blob = self.tools.source.get(planned.key)
        except NotFoundError:
            self._look_for_source()
            ready.gone = True
            return b""
        except UnavailableError as error:
            self._look_for_source()
            raise StorageError(str(error)) from error
        # What was fetched may be newer than what was listed: the row is of what was fetched.
        ready.recording = Recording(
            planned.key, len(blob.data), blob.etag, blob.modified_us, planned.replaces
        )
        return blob.data

    def _look_for_source(self) -> None:
        """That it is the one object's trouble, and not the whole source's: then nothing can be
        done."""
        source = self.tools.source
        try:
            found = next(iter(source.list()), None)
        except NotFoundError:
            found = None
        if found is None:
            raise UnavailableError(f"the source {source.url} is empty or no longer there")

    def _transcribe_and_tokenize(self, batch: Sequence[_Ready]) -> None:
        good = [r for r in batch if not r.failure and not r.gone]
        if not good:
            return
        tokens = self.tools.tokenizing.submit(self._tokenize, good)
        self._transcribe(good)
        tokens.result()

    def _transcribe(self, batch: Sequence[_Ready]) -> None:
        """Transcribe a batch; if that fails, one by one, to find out whose fault it was."""
        transcriber = self.tools.transcriber
        with self.tools.model_lock:
            started = time.perf_counter()
            try:
                transcripts = transcriber.transcribe(
                    [r.waveforms[transcriber.sample_rate] for r in batch]
                )
            except Exception as error:  # noqa: BLE001 - see above
                if len(batch) == 1:
                    self._count_model_errors(error)
                    batch[0].fail("transcribe", error)
                    return
                transcripts = None
            else:
                self.tools.model_errors = 0
            seconds = time.perf_counter() - started
        if transcripts is None:
            for ready in batch:
                self._transcribe([ready])
            return
        total_s = sum(r.duration_s for r in batch)
        for ready, transcript in zip(batch, transcripts, strict=True):
            ready.transcript = transcript
            ready.transcribe_s = seconds * ready.duration_s / total_s

    def _count_model_errors(self, error: Exception) -> None:
        """End the build when the engine fails again and again."""
        if isinstance(error, ModelError):
            self.tools.model_errors += 1
            if self.tools.model_errors >= MODEL_ERRORS:
                raise error

    def _tokenize(self, batch: Sequence[_Ready]) -> None:
        for ready in batch:
            waveforms = dict(ready.waveforms)
            started = time.perf_counter()
            with _recorded(ready, "tokenize"):
                for tokenizer in self.tools.tokenizers:
                    ready.codes += tokenizer.encode([waveforms[tokenizer.sample_rate]])
            ready.tokenize_s = time.perf_counter() - started

    def _collect(self, batch: Sequence[_Ready]) -> None:
        """Put the batch to its parts; commit those that are complete, or all when it is time."""
        complete = []
        for ready in batch:
            ready.waveforms.clear()
            self.pending[ready.part].append(ready)
            self.missing[ready.part] -= 1
            if not self.missing[ready.part]:
                complete.append(ready.part)
            done = RecordingDone(
                file_name=ready.recording.file_name,
                num_bytes=ready.recording.size,
                duration_s=ready.duration_s,
                num_rows=0 if ready.failure or ready.gone else 1,
                fetch_s=ready.fetch_s,
                decode_s=ready.decode_s,
                transcribe_s=ready.transcribe_s,
                tokenize_s=ready.tokenize_s,
                failure=ready.failure,
                gone=ready.gone,
            )
            self.done.append(done)
            self.on_done(done)
        if time.monotonic() - self.committed_at > COMMIT_EVERY_S:
            complete = list(self.pending)
        self._commit_pending(complete)

    def _commit_pending(self, parts: Sequence[Part]) -> None:
        for part in parts:
            outcome = self.pending.pop(part)
            self.commits.append(self.tools.committing.submit(self._commit, part, outcome))
            self.committed_at = time.monotonic()

    def _commit(self, part: Part, outcome: Sequence[_Ready]) -> tuple[int, float]:
        """Returns the conflicts met, and the seconds it took."""
        started = time.perf_counter()
        good = [r for r in outcome if not r.failure and not r.gone]
        recipe = self.tools.recipe.id
        conflicts = commit(
            self.tools.sink,
            part,
            utterances_to_table([_utterance(r) for r in good], self.tools.schema, recipe),
            [r.failure for r in outcome if r.failure],
            recipe=recipe,
            replaces={r.recording.file_name: r.recording.replaces for r in good},
            is_current=self.tools.is_current,
        )
        return conflicts, time.perf_counter() - started

    def _raise_failed_commits(self) -> None:
        for future in self.commits:
            if future.done():
                future.result()


def _utterance(ready: _Ready) -> Utterance:
    """The row of a recording that is kept whole."""
    if ready.decoded is None or ready.transcript is None:
        raise SpeechmillError(f"{ready.recording.file_name} was committed before it was done")
    return Utterance(
        recording=ready.recording,
        folder_name=ready.part.folder_name,
        start_s=0.0,
        end_s=ready.duration_s,
        sample_rate=ready.decoded.sample_rate,
        channels=ready.decoded.channels,
        transcript=ready.transcript,
        codes=tuple(ready.codes),
        flags=ready.decoded.flags,
        fetch_s=ready.fetch_s,
        decode_s=ready.decode_s,
        transcribe_s=ready.transcribe_s,
        tokenize_s=ready.tokenize_s,
    )
