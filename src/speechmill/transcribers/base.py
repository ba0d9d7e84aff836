"""What every transcriber does, whichever model and engine is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

from numpy.typing import NDArray
from pydantic import Field

from speechmill.job import Job, SpokenOptions, TranscriptionOptions
from speechmill.records import Speech, Transcript

__all__ = ["OnEncoded", "SharesEncoder", "Transcriber", "TranscriberOptions"]

OnEncoded = Callable[[int, NDArray[Any]], None]
"""Is given a stretch's number, and what the encoder made of it: float [num_frames, width]."""


class TranscriberOptions(TranscriptionOptions, SpokenOptions):
    """What a transcriber is told, but for its model: the options of a job that concern it.

    A transcriber that cannot do what an option other than its default asks for raises JobError.
    """

    cpu_threads: Annotated[int, Field(ge=0)] = 0

    @staticmethod
    def of(job: Job) -> TranscriberOptions:
        """What the job says."""
        told = {name: getattr(job, name) for name in OF_A_JOB}
        return TranscriberOptions(**told, cpu_threads=job.threads)


OF_A_JOB: Final = TranscriptionOptions.model_fields.keys() | SpokenOptions.model_fields.keys()


class Transcriber(Protocol):
    """Turns speech into transcripts.

    An instance may be called from several threads at once. What it returns for a stretch of speech
    does not depend on the others of the call, nor on their order.
    """

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, that ``transcribe`` wants."""

    @property
    def max_speech_s(self) -> float | None:
        """The longest stretch that it takes in one go; None if any length will do."""

    @property
    def needs_voice(self) -> bool:
        """Whether it makes up words where nobody speaks, so that it must only be given stretches
        in which a voice was heard."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Every choice that shapes the text, as JSON values: weights' digests, options."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What does not shape the text but made it: engine, device, library versions."""

    def transcribe(self, speech: Sequence[Speech]) -> list[Transcript]:
        """Transcribe each stretch of speech, none longer than ``max_speech_s``.

        Returns one transcript a stretch, in order, with times from its first sample.

        Raises:
            ModelError: the engine cannot run the model.
        """

    def detect_language(self, speech: Sequence[Speech]) -> tuple[str, float] | None:
        """The language of one recording, heard in several stretches of it.

        Returns its code and probability; None where there is nothing to detect: no speech is
        given, the language was told, or the model knows but one.

        Raises:
            ModelError: the engine cannot run the model.
        """


class SharesEncoder(Transcriber, Protocol):
    """A transcriber that hands on what its encoder computes, for tokens that are made of it.

    A tokenizer that ``TakesEncoded`` says whether a transcriber is one (``shares``).
    """

    def transcribe(
        self, speech: Sequence[Speech], *, on_encoded: OnEncoded | None = None
    ) -> list[Transcript]:
        """Transcribe each stretch of speech, and call ``on_encoded`` for those that the encoder
        has computed, from any thread. The array is not to be kept: copy what you need.

        Raises:
            ModelError: the engine cannot run the model.
        """
