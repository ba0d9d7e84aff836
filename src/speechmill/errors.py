"""Every error that Speechmill raises on purpose.

::

    SpeechmillError
    ├── JobError                the job asks for something that makes no sense (exit code 2)
    │   └── MissingExtraError   an optional dependency is not installed
    ├── DatasetError            the sink holds something other than this job expects
    │   ├── RecipeChangedError  the sink's rows were made in another way
    │   ├── SourceChangedError  the sink's rows come from another source
    │   └── ReplacedError       a part was replaced while it was being read
    ├── EngineError             the engine that runs the shards cannot be reached, or is gone
    │   └── WorkerDiedError     one of its processes died
    ├── BrokerError             a queue cannot be reached, read or written
    ├── ModelError              weights cannot be found, read or trusted
    ├── StorageError            the object store did not do what was asked
    │   ├── NotFoundError       no such object
    │   ├── AccessDeniedError   the credentials do not allow it
    │   ├── ArchivedError       the object is in an archive, and has to be restored first
    │   ├── ConflictError       the object is not the one the caller has seen
    │   ├── UnavailableError    still failing after every retry
    │   ├── NoRoomError         the temporary folder has no room
    │   └── UnsupportedError    the store lacks something that Speechmill needs
    └── AudioError              a recording that cannot become a row
        ├── EmptyAudioError     no bytes, or no samples
        ├── NotAudioError       the bytes are no audio
        ├── TruncatedError      the recording ends before it should
        ├── DamagedError        part of it cannot be decoded, or is not finite
        ├── ChannelError        it lacks the channel or the track that was asked for
        ├── DecoderDiedError    decoding it ends the process that does it, or never ends
        └── LimitError          it would cost more than one recording may

An error's text says what was wrong, where, and what to do. Foreign errors (obstore, botocore,
FFmpeg, pydantic) are mapped to these once, where they enter.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AccessDeniedError",
    "ArchivedError",
    "AudioError",
    "BrokerError",
    "ChannelError",
    "ConflictError",
    "DamagedError",
    "DatasetError",
    "DecoderDiedError",
    "EmptyAudioError",
    "EngineError",
    "JobError",
    "LimitError",
    "MissingExtraError",
    "ModelError",
    "NoRoomError",
    "NotAudioError",
    "NotFoundError",
    "RecipeChangedError",
    "ReplacedError",
    "SourceChangedError",
    "SpeechmillError",
    "StorageError",
    "TruncatedError",
    "UnavailableError",
    "UnsupportedError",
    "WorkerDiedError",
    "did_you_mean",
]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The hint behind a word that is none of the choices: the most similar one, or only ";"."""
    near = get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ";"


class SpeechmillError(Exception):
    """Base of all errors that Speechmill raises on purpose."""


class JobError(SpeechmillError):
    """The job asks for something that makes no sense."""


class MissingExtraError(JobError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'speechmill[{extra}]'")
        self.what = what
        self.extra = extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return type(self), (self.what, self.extra)


class DatasetError(SpeechmillError):
    """The sink holds something other than this job expects."""


class RecipeChangedError(DatasetError):
    """The sink's rows were made in another way."""


class SourceChangedError(DatasetError):
    """The sink's rows come from another source."""


class ReplacedError(DatasetError):
    """A part was replaced while it was being read."""


class EngineError(SpeechmillError):
    """The engine that runs the shards cannot be reached, or is gone."""


class WorkerDiedError(EngineError):
    """A process that was working on a shard died."""


class BrokerError(SpeechmillError):
    """A queue cannot be reached, read or written."""


class ModelError(SpeechmillError):
    """Weights cannot be found, read or trusted."""


class StorageError(SpeechmillError):
    """The object store did not do what was asked."""


class NotFoundError(StorageError):
    """There is no such object."""


class AccessDeniedError(StorageError):
    """The credentials do not allow it."""


class ArchivedError(StorageError):
    """The object is in an archive, and has to be restored before it can be read."""


class ConflictError(StorageError):
    """The object is not the one that the caller has seen."""


class UnavailableError(StorageError):
    """The store still fails after every retry."""


class UnsupportedError(StorageError):
    """The store lacks something that Speechmill needs."""


class NoRoomError(StorageError):
    """The temporary folder has no room for a long recording, for now."""


class AudioError(SpeechmillError):
    """A recording that cannot become a row."""


class EmptyAudioError(AudioError):
    """There are no bytes, or no samples."""


class NotAudioError(AudioError):
    """The bytes are no audio."""


class TruncatedError(AudioError):
    """The recording ends before it should."""


class DamagedError(AudioError):
    """Part of the recording cannot be decoded, or its samples are not finite."""


class ChannelError(AudioError):
    """The recording lacks the channel or the track that was asked for."""


class DecoderDiedError(AudioError):
    """Decoding the recording ends the process that does it, or takes more time than it may."""


class LimitError(AudioError):
    """The recording would cost more than one recording may: time, memory or room."""
