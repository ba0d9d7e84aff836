"""The plain values that travel through a build. All are picklable; none does I/O."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Codes",
    "Failure",
    "Part",
    "Recording",
    "RecordingDone",
    "Segment",
    "Shard",
    "ShardReport",
    "Speech",
    "Stage",
    "Transcript",
    "Utterance",
    "Waveform",
    "Word",
    "key_of",
    "number_of",
    "pack",
    "printable",
    "unpack",
]

Stage = Literal["list", "fetch", "decode", "transcribe", "tokenize", "commit", "worker"]


def number_of(text: str) -> int:
    """A number of 64 bits that stands for a text, in every process the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def printable(key: str) -> str:
    r"""A store's key as valid Unicode: bytes that are not UTF-8 appear as ``\xff``.

    In such names, and in those that hold ``\x`` anyway, a backslash appears as two, so that
    different keys have different names.
    """
    if key.isascii() and "\\x" not in key:
        return key
    try:
        key.encode()
    except UnicodeEncodeError:
        raw = key.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
        return raw.decode("utf-8", "backslashreplace")
    return key.replace("\\", "\\\\") if "\\x" in key else key


def key_of(file_name: str) -> str:
    """The store's key that ``printable`` shows as this name."""
    if "\\x" not in file_name:
        return file_name
    raw = re.sub(
        rb"\\\\|\\x([0-9a-f]{2})",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\",
        file_name.encode(),
    )
    return raw.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Recording:
    """A source file: where it is, and which version of it.

    ``key`` is its path relative to SOURCE just as the store names it (bytes that are not UTF-8
    as surrogate escapes). ``(file_name, size, etag)`` is its identity. ``modified_us`` is in
    microseconds since 1970, UTC. ``replaces`` is the etag of the row, or else of the
    failure, that this version was planned to replace; "" where there is none.
    """

    key: str
    size: int
    etag: str
    modified_us: int
    replaces: str = ""

    @property
    def file_name(self) -> str:
        """The key as valid Unicode: the dataset's name for this recording."""
        return printable(self.key)


_VALUES = [attrgetter(one.name) for one in fields(Recording)]


def pack(recordings: Sequence[Recording]) -> bytes:
    """Recordings in a tenth of the memory, for those that wait by the hundred thousand."""
    return _compressed(_columns(recordings))


def unpack(packed: bytes) -> list[Recording]:
    """The inverse of ``pack``."""
    return list(map(Recording, *json.loads(zlib.decompress(packed))))


def _columns(recordings: Sequence[Recording]) -> list[list[str | int]]:
    # By column, as neighbours are alike: that takes half the time and room of doing it by row.
    return [list(map(value, recordings)) for value in _VALUES]


def _compressed(told: object) -> bytes:
    # ASCII, so that keys that are not UTF-8 come back as they were. Level 1: 6 takes twice as long
    # for a twentieth less.
    return zlib.compress(json.dumps(told, separators=(",", ":")).encode("ascii"), 1)


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One part file of a folder: its rows belong to it for the life of the sink.

    Where a sink is not partitioned by folder, ``folder_name`` is what stands for several of them.
    """

    folder_name: str
    index: int
    count: int

    def belongs_to(self, shard_index: int, shard_count: int) -> bool:
        """Whether this is a part for the process ``shard_index`` out of ``shard_count``."""
        number = number_of(f"{self.index}/{self.count}/{self.folder_name}")
        return number % shard_count == shard_index

    @staticmethod
    def of(folder_name: str, file_name: str, count: int) -> Part:
        """The part, out of ``count``, that the recording belongs to."""
        return Part(folder_name, number_of(file_name) % count, count)


@dataclass(frozen=True, slots=True, init=False)
class Shard:
    """The unit of work: what one part lacks, or what several small parts lack together.

    All but a few wait while those are done, so the recordings are packed: see ``pack``.
    ``num_recordings`` are to be done, ``num_bytes`` is their size in the source.
    """

    index: int
    num_recordings: int
    num_bytes: int
    _packed: bytes = field(repr=False)

    def __init__(self, index: int, parts: Iterable[tuple[Part, Sequence[Recording]]]) -> None:
        """A shard of these parts, each with what is to be done of it."""
        parts = tuple(parts)
        recordings = [r for _, some in parts for r in some]
        told = [(p.folder_name, p.index, p.count, len(some)) for p, some in parts]
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "num_recordings", len(recordings))
        object.__setattr__(self, "num_bytes", sum(r.size for r in recordings))
        object.__setattr__(self, "_packed", _compressed([told, *_columns(recordings)]))

    @property
    def parts(self) -> tuple[tuple[Part, tuple[Recording, ...]], ...]:
        """Each part with what is to be done of it. Made anew each time: ask once."""
        told, *columns = json.loads(zlib.decompress(self._packed))
        recordings = map(Recording, *columns)
        return tuple(
            (Part(folder_name, index, count), tuple(islice(recordings, number)))
            for folder_name, index, count, number in told
        )


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio: ``samples`` float32 [num_samples] in −1..1, at ``sample_rate`` Hz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """A stretch of a recording that is to be transcribed in one go.

    ``samples`` is float32 [num_samples], mono, −1..1, at the transcriber's rate; not to be written
    to. ``voiced`` are the stretches in which a voice was heard, (start_s, end_s) from the first
    sample, in order and apart; None where nothing listened. ``language`` is Whisper's code of the
    language, where the recording's is known already; None to detect it.
    """

    samples: NDArray[np.float32]
    voiced: tuple[tuple[float, float], ...] | None = None
    language: str | None = None
    language_probability: float | None = None

    @property
    def voiced_s(self) -> float | None:
        """Seconds of voice."""
        return None if self.voiced is None else sum(end - start for start, end in self.voiced)


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times (seconds from the start of the speech, in a row of the recording)."""

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of text as Whisper cuts it (seconds, as those of ``Word``)."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a stretch of speech, or in a row, and how sure the model is.

    ``text`` is "" where there is no speech; then the values that only speech has are None.
    ``language_heard`` is the language that was detected beside the text, None where nobody listened
    for it. ``repetition`` is that of the piece that repeats itself most, where it is of several.
    ``temperature`` is the one that gave the text, ``window_s`` the audio that was computed for it
    (None where the transcriber has no such thing).
    """

    text: str
    language: str | None = None
    language_probability: float | None = None
    language_heard: str | None = None
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    repetition: float | None = None
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] | None = None
    temperature: float | None = None
    window_s: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A tokenizer's output for one waveform: float32 [n_mfcc, num_frames] for features, or
    int16 or int32 [num_codebooks, num_frames] for codes."""

    values: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A row of the dataset: a recording, or a span of one.

    ``codes`` holds one entry a tokenizer of the job, in its order; so does ``round_trip_cer``, the
    character error rate of what is heard in the decoded codes, None where that was not asked for.
    ``flags`` name what is suspicious. ``sample_rate`` (Hz) and ``channels`` are the source's;
    ``channel`` is the one that was taken, counted from 0, None for their mix.
    ``voiced_s`` are its seconds of voice, None where nothing listened. ``repetition`` and
    ``chars_per_voiced_s`` are figures of its text (``text/figures.py``). ``measured`` are values by
    column. All times are from the start of the recording.
    """

    recording: Recording
    folder_name: str
    start_s: float
    end_s: float
    sample_rate: int
    channels: int
    transcript: Transcript
    codes: tuple[Codes, ...] = ()
    flags: tuple[str, ...] = ()
    voiced_s: float | None = None
    repetition: float | None = None
    chars_per_voiced_s: float | None = None
    fetch_s: float = 0.0
    decode_s: float = 0.0
    transcribe_s: float = 0.0
    tokenize_s: float = 0.0
    round_trip_cer: tuple[float | None, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that could not become a row, and why."""

    recording: Recording
    folder_name: str
    stage: Stage
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class RecordingDone:
    """One recording's way through a shard: what the logs, the display and the report are fed.

    Seconds by stage are this recording's share of the batch it was in. ``failure`` is None where
    it became ``num_rows`` rows. ``gone`` means that it was deleted after it was listed.
    """

    file_name: str
    num_bytes: int = 0
    duration_s: float = 0.0
    num_rows: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    transcribe_s: float = 0.0
    tokenize_s: float = 0.0
    flags: tuple[str, ...] = ()
    failure: Failure | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a shard's recordings, and what it took.

    ``mismatch`` is the share of codes, by tokenizer and codebook, that came out otherwise when the
    first row was encoded again, alone. ``written_bytes`` is the size of all parts that were put
    into the sink, and ``filled`` are the seconds of audio that each of them holds now.
    """

    shard_index: int
    done: tuple[RecordingDone, ...] = ()
    wall_s: float = 0.0
    commit_s: float = 0.0
    conflicts: int = 0
    mismatch: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stopped: bool = False
    written_bytes: int = 0
    filled: tuple[tuple[Part, float], ...] = ()

    @property
    def got_on(self) -> bool:
        """Whether something of it was done: then not every process dies."""
        return any(not done.failure for done in self.done)
