"""From a recording in the source to rows whose audio is at hand: fetched, decoded, cut."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill import audio
from speechmill.errors import (
    EngineError,
    NoRoomError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from speechmill.pipeline.resources import Resources
from speechmill.pipeline.row_recipe import SEGMENTING, VOICE
from speechmill.records import Codes, Failure, Part, Recording, Speech, Stage, Transcript, Waveform
from speechmill.speech.segmentation import Piece, Row, keep_whole, must_listen, segment
from speechmill.speech.voice import SAMPLE_RATE, listen
from speechmill.storage import Fetched, Store, fetch

__all__ = [
    "Choices",
    "Intake",
    "ReadyPiece",
    "ReadyRecording",
    "ReadyRow",
    "Signal",
    "decode_into",
    "fetch_into",
    "recorded",
]

WHOLE_S: Final = 30.0
"""Up to here a recording that is one row is resampled at once, in the decoder's thread."""


OVERLAP_S: Final = 0.5
"""So much of a row two must have spoken at once, for it to be flagged: half a window of theirs may
be another row's."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How recordings are decoded; see ``audio.decode``."""

    keep_damaged: bool = False
    track: int | None = None


@dataclass(slots=True, eq=False)
class Signal:
    """What of a recording is heard as one: the mix of its channels (``channel`` is None), or one of
    them. ``flags`` name what is suspicious about it, ``overlaps`` are where channels that were
    mixed hold voices of their own at the same time."""

    channel: int | None = None
    flags: tuple[str, ...] = ()
    overlaps: tuple[tuple[float, float], ...] = ()
    waveform: Waveform | None = None  # as it was decoded; None once nothing needs it
    voice_highest: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    language: tuple[str, float] | None = None
    language_detected: bool = False  # whether it was asked for, under the lock


@dataclass(slots=True, eq=False)
class ReadyRecording:
    """A recording on its way: its rows, or its failure. ``channels`` is their number in the source,
    ``signals`` are those that become rows: one, unless channels are split."""

    part: Part
    recording: Recording
    folder_name: str
    duration_s: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    signals: list[Signal] = field(default_factory=list)
    rows: list[ReadyRow] = field(default_factory=list)
    decoded_rate: int = 0
    failure: Failure | None = None
    gone: bool = False
    fetch_s: float = 0.0
    decode_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether rows are to come of it, as far as is known by now."""
        return not (self.failure or self.gone)

    @property
    def found_no_room(self) -> bool:
        """Whether it failed only because the temporary folder had no room at the time."""
        return self.failure is not None and self.failure.error == NoRoomError.__name__

    def fail(self, stage: Stage, error: BaseException) -> None:
        """Make it a failure; the first one is kept."""
        self.failure = self.failure or Failure(
            self.recording, self.folder_name, stage, type(error).__name__, str(error)
        )

    def release(self) -> None:
        """Let go of the audio."""
        for signal in self.signals:
            signal.waveform = None
        for row in self.rows:
            row.waveforms.clear()


@dataclass(slots=True, eq=False)
class ReadyRow:
    """A row on its way. ``waveforms`` (by sample rate, Hz) are made when they are first wanted."""

    owner: ReadyRecording
    signal: Signal
    row: Row
    pieces: list[ReadyPiece] = field(default_factory=list)
    waveforms: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    codes: dict[int, Codes] = field(default_factory=dict)  # by the tokenizer's number in the job
    round_trip_cer: dict[int, float] = field(default_factory=dict)  # likewise
    measured: dict[str, Any] = field(default_factory=dict)  # by column
    transcribe_s: float = 0.0
    tokenize_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.row.end_s - self.row.start_s

    @property
    def flags(self) -> tuple[str, ...]:
        """What is suspicious about its audio."""
        first, last = self.row.start_s, self.row.end_s
        shared_s = sum(max(0.0, min(b, last) - max(a, first)) for a, b in self.signal.overlaps)
        overlapped = shared_s >= min(OVERLAP_S, self.duration_s / 2)
        return self.signal.flags + ("overlapped_speech",) * (shared_s > 0 and overlapped)

    def samples(self, sample_rate: int) -> NDArray[np.float32]:
        """Its waveform, float32 [num_samples], at ``sample_rate`` Hz; 0 is the rate that the
        recording was decoded at. Thread-safe."""
        sample_rate = sample_rate or self.owner.decoded_rate
        with self.lock:
            if sample_rate not in self.waveforms:
                whole = _decoded(self.owner, self.signal)
                first = round(self.row.start_s * whole.sample_rate)
                end = max(first + 1, round(self.row.end_s * whole.sample_rate))
                part = Waveform(whole.samples[first:end], whole.sample_rate)
                self.waveforms[sample_rate] = audio.resample(part, sample_rate).samples
            return self.waveforms[sample_rate]

    def release(self) -> None:
        """Let go of the waveforms, if they can be made again."""
        if self.signal.waveform is not None:
            with self.lock:
                self.waveforms.clear()


@dataclass(slots=True, eq=False)
class ReadyPiece:
    """A piece of a row, and its transcript once it has one."""

    row: ReadyRow
    piece: Piece
    transcript: Transcript | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.piece.end_s - self.piece.start_s

    def speech(self, sample_rate: int, max_speech_s: float | None) -> Speech:
        """What the transcriber is given: audio at its rate, and where the voice is in it."""
        row, piece = self.row, self.piece
        if row.duration_s <= WHOLE_S or len(row.pieces) == 1:
            offset = round((piece.start_s - row.row.start_s) * sample_rate)
            samples = row.samples(sample_rate)[offset:]
        else:
            offset = round(piece.start_s * sample_rate)
            end = round(piece.end_s * sample_rate)
            samples = reader(_decoded(row.owner, row.signal), sample_rate)(offset, end)
        length = round(self.duration_s * sample_rate)
        if max_speech_s is not None:
            length = min(length, int(max_speech_s * sample_rate))
        voiced = piece.voiced and tuple(
            (a - piece.start_s, b - piece.start_s) for a, b in piece.voiced
        )
        language, probability = row.signal.language or (None, None)
        return Speech(samples[: max(1, length)], voiced, language, probability)


@contextmanager
def recorded(ready: ReadyRecording, stage: Stage) -> Iterator[None]:
    """The boundary at which whatever goes wrong with one recording becomes its failure."""
    try:
        yield
    except (EngineError, UnavailableError):
        raise
    except StorageError as error:  # also of temporary files: it says nothing about the recording
        ready.fail("fetch", error)
    except Exception as error:  # noqa: BLE001 - one recording must not take the others along
        ready.fail(stage, error)


class Intake:
    """Fetches recordings and makes them ready, called from the threads of ``resources``."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        rates = {resources.transcriber.sample_rate, *(t.sample_rate for t in resources.tokenizers)}
        rates |= {m.needs.sample_rate for m in resources.measures if m.needs.audio}
        self.rates = sorted(rates)
        job = resources.job
        self.limits = audio.Limits(max_duration_s=job.max_duration_s, **job.decode_limit)
        self.choices = Choices(job.keep_damaged, job.track)
        self.channels: tuple[int | None, ...] | None = None
        if job.channels != "split":
            self.channels = (None if job.channels == "mix" else int(job.channels),)

    def fetch(self, part: Part, recording: Recording) -> tuple[ReadyRecording, Fetched | None]:
        """Fetch a recording's bytes; none where it is gone, or has failed.

        Raises:
            UnavailableError: the source as a whole is down or gone.
        """
        ready = ReadyRecording(part, recording, self.resources.folder_of(recording.file_name))
        started = time.perf_counter()
        fetched = None
        with recorded(ready, "fetch"):
            fetched = fetch_into(ready, self.resources.source)
        ready.fetch_s = time.perf_counter() - started
        return ready, fetched

    def decode(self, fetched: Future[tuple[ReadyRecording, Fetched | None]]) -> ReadyRecording:
        """Decode what was fetched, listen to it where that is needed, and cut it into rows.

        What is one row and short is resampled, too; else that is left for when it is needed.
        """
        ready, blob = fetched.result()
        if blob is None:
            return ready
        started = time.perf_counter()
        with recorded(ready, "decode"):
            decode_into(ready, blob, self.channels, self.choices, self.limits)
            for signal in ready.signals:
                self._cut(ready, signal)
        if not ready.is_good:  # of several channels some may be there
            ready.release()
        ready.decode_s = time.perf_counter() - started
        return ready

    def _cut(self, ready: ReadyRecording, signal: Signal) -> None:
        mode, transcriber = self.resources.job.segment, self.resources.transcriber
        whole = _decoded(ready, signal)
        duration_s = whole.duration_s
        short = duration_s <= WHOLE_S
        cut = keep_whole(duration_s)
        known: dict[int, NDArray[np.float32]] = {}
        if must_listen(
            mode,
            duration_s,
            SEGMENTING,
            needs_voice=transcriber.needs_voice,
            max_speech_s=transcriber.max_speech_s,
        ):
            if short:
                known[SAMPLE_RATE] = audio.resample(whole, SAMPLE_RATE).samples
                audible = Waveform(known[SAMPLE_RATE], SAMPLE_RATE)
                num_samples = len(audible.samples)
            else:
                audible = whole
                num_samples = len(whole.samples) * SAMPLE_RATE // whole.sample_rate
            voice = listen(reader(audible, SAMPLE_RATE), num_samples, VOICE, duration_s)
            cut = segment(voice, mode, SEGMENTING, VOICE, transcriber.max_speech_s)
        signal.voice_highest = cut.highest
        rows = [ReadyRow(ready, signal, row) for row in cut.rows]
        for one in rows:
            one.pieces = [ReadyPiece(one, piece) for piece in one.row.pieces]
        ready.rows += rows
        if short and len(rows) == 1 and rows[0].duration_s == duration_s:
            rows[0].waveforms = {r: known[r] for r in self.rates if r in known}
            for rate in self.rates:
                rows[0].samples(rate)
            signal.waveform = None


def fetch_into(ready: ReadyRecording, source: Store) -> Fetched | None:
    """Fetch a recording's bytes as they are now; None, and ``gone``, where there are none any more.

    Raises:
        UnavailableError: the source as a whole is down or gone.
        StorageError: this object cannot be read.
    """
    planned = ready.recording
    try:
        blob = fetch(source, planned.key, planned.size)
    except NotFoundError:
        _check_source(source)
        ready.gone = True
        return None
    except UnavailableError as error:
        _check_source(source)
        raise StorageError(str(error)) from error
    # What was fetched may be newer than what was listed: the row is of what was fetched.
    ready.recording = Recording(
        planned.key, len(blob.data), blob.etag, blob.modified_us, planned.replaces
    )
    return blob


def decode_into(
    ready: ReadyRecording,
    blob: Fetched,
    channels: Sequence[int | None] | None,
    choices: Choices,
    limits: audio.Limits,
) -> None:
    """Decode what was fetched: for each of ``channels`` a signal, None for their mix; one for each
    channel that there is where ``channels`` is None.

    Each is decoded by itself: that costs little beside transcription, and what is wrong with a
    recording shows in the same way whatever is taken of it.

    Raises:
        AudioError: it cannot become a row; LimitError where it would cost more than ``limits``.
        NoRoomError: the temporary folder has no room.
        StorageError: the temporary folder cannot be written to.
    """
    waiting = deque([0] if channels is None else channels)
    while waiting:
        channel = waiting.popleft()
        decoded = audio.decode_isolated(
            blob.data,
            keep_damaged=choices.keep_damaged,
            track=choices.track,
            channel=channel,
            limits=limits,
        )
        if channels is None and channel == 0:
            waiting.extend(range(1, decoded.channels))
        ready.decoded_rate = decoded.waveform.sample_rate
        ready.duration_s = decoded.waveform.duration_s
        ready.sample_rate, ready.channels = decoded.sample_rate, decoded.channels
        ready.signals.append(
            Signal(channel, decoded.flags, decoded.overlaps, waveform=decoded.waveform)
        )


def _check_source(source: Store) -> None:
    """Make sure that the source as a whole is there: then only the one object is in trouble."""
    with suppress(NotFoundError):
        if next(iter(source.list()), None) is not None:
            return
    raise UnavailableError(f"the source {source.url} is empty or no longer there")


def _decoded(ready: ReadyRecording, signal: Signal) -> Waveform:
    if signal.waveform is None:
        raise RuntimeError(f"{ready.recording.file_name} was let go of before it was done")
    return signal.waveform


def reader(waveform: Waveform, sample_rate: int) -> Callable[[int, int], NDArray[np.float32]]:
    """Make a function that reads any stretch of a waveform at another rate, in samples of it,
    as if all of it had been resampled: a second more is on either side, and it begins on a whole
    one."""
    if waveform.sample_rate == sample_rate:
        return lambda start, end: waveform.samples[start:end]

    def read(start: int, end: int) -> NDArray[np.float32]:
        first_s, last_s = max(0, start // sample_rate - 1), -(-end // sample_rate) + 1
        rate = waveform.sample_rate
        around = Waveform(waveform.samples[first_s * rate : last_s * rate], rate)
        offset = first_s * sample_rate
        samples = audio.resample(around, sample_rate).samples[start - offset : end - offset]
        return np.pad(samples, (0, end - start - len(samples)))  # its end may be rounded away

    return read
