"""The plain values that travel through a build. All are picklable; none does I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

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
    "Stage",
    "Transcript",
    "Utterance",
    "Waveform",
    "Word",
    "printable",
]

Stage = Literal["list", "fetch", "decode", "transcribe", "tokenize", "commit"]


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


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One part file of a folder: its rows belong to it for the life of the sink."""

    folder_name: str
    index: int
    count: int

    @staticmethod
    def of(folder_name: str, file_name: str, count: int) -> Part:
        """The part, out of ``count``, that the recording belongs to."""
        digest = hashlib.blake2b(file_name.encode(), digest_size=8).digest()
        return Part(folder_name, int.from_bytes(digest, "big") % count, count)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: what one part lacks, or what several small parts lack together."""

    index: int
    parts: tuple[tuple[Part, tuple[Recording, ...]], ...]

    @property
    def num_recordings(self) -> int:
        """How many recordings are to be done."""
        return sum(len(recordings) for _, recordings in self.parts)

    @property
    def num_bytes(self) -> int:
        """Their size in the source, in bytes."""
        return sum(r.size for _, recordings in self.parts for r in recordings)


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio: ``samples`` float32 [num_samples] in −1..1, at ``sample_rate`` Hz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times (seconds from the start of the recording)."""

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of speech as Whisper cuts it (seconds from the start of the recording)."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in one waveform, and how sure the model is.

    ``text`` is "" where there is no speech; then the values that only speech has are None.
    """

    text: str
    language: str | None = None
    language_probability: float | None = None
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A tokenizer's output for one waveform: float32 [n_mfcc, num_frames] for features, or
    int16 or int32 [num_codebooks, num_frames] for codes."""

    values: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A row of the dataset: a recording, or a span of one.

    ``codes`` holds one entry a tokenizer of the job, in its order. ``flags`` name what is
    suspicious. ``sample_rate`` (Hz) and ``channels`` are the source's.
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
    fetch_s: float = 0.0
    decode_s: float = 0.0
    transcribe_s: float = 0.0
    tokenize_s: float = 0.0


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
    """What became of a shard's recordings, and what it took."""

    shard_index: int
    done: tuple[RecordingDone, ...] = ()
    wall_s: float = 0.0
    commit_s: float = 0.0
    conflicts: int = 0
    stopped: bool = False
