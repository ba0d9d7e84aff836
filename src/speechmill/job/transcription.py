"""What a job says of transcription. A new option is one field here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from speechmill.job.options import Name, Options, Texts

__all__ = ["ModelOptions", "SegmentationOptions", "SpokenOptions", "TranscriptionOptions"]


class ModelOptions(Options):
    """Which model transcribes, by which backend."""

    panel: ClassVar[str] = "Transcription"

    transcriber: Annotated[
        str,
        Field(description="Transcription backend: whisper, openai-whisper, transformers or fake."),
    ] = "whisper"
    model: Annotated[
        Name,
        Field(description="Whisper model: tiny … large-v3, turbo, a folder or a hub id."),
    ] = "base"


class SpokenOptions(Options):
    """What is spoken, and what is to be written of it."""

    panel: ClassVar[str] = "Transcription"

    language: Annotated[
        str | None,
        Field(description="Language spoken, such as en [default: detected per recording]."),
    ] = None
    languages: Annotated[
        Texts,
        Field(description="Allow detection of these languages only; may be given several times."),
    ] = ()
    task: Annotated[
        Literal["transcribe", "translate"],
        Field(description="transcribe, or translate to English."),
    ] = "transcribe"


class SegmentationOptions(Options):
    """How recordings are cut before they are transcribed."""

    panel: ClassVar[str] = "Transcription"

    segment: Annotated[
        Literal["auto", "vad", "none"],
        Field(
            description="Rows of a recording: vad cuts it at silences into utterances of up to "
            "30 s, none keeps it whole, auto cuts what is longer than 30 s."
        ),
    ] = "auto"


class TranscriptionOptions(Options):
    """How a model transcribes."""

    panel: ClassVar[str] = "Transcription"

    window: Annotated[
        Literal["adaptive", "full"],
        Field(
            description="Audio that Whisper computes: adaptive is as long as the speech needs, "
            "full is always 30 s."
        ),
    ] = "adaptive"
    beam_size: Annotated[int, Field(ge=1, description="Beams of the decoder; 1 is greedy.")] = 5
    temperature: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2)], ...],
        Field(
            min_length=1,
            description="Sampling temperatures, tried in turn until the text is sure enough.",
        ),
    ] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    words: Annotated[
        bool, Field(description="Give each word its times and probability, in the column words.")
    ] = False
    initial_prompt: Annotated[
        str | None,
        Field(description="Text that each recording is to continue: it sets style and spelling."),
    ] = None
    hotwords: Annotated[
        str | None, Field(description="Names and terms that are likely to be spoken.")
    ] = None
    suppress_numerals: Annotated[
        bool, Field(description="Spell numbers out: 'six', never '6'.")
    ] = False
    device: Annotated[str, Field(description="Where the model runs: auto, cpu or cuda.")] = "auto"
    compute_type: Annotated[
        str,
        Field(description="Number format of the model: auto, int8, float16, float32, …"),
    ] = "auto"
    batch_size: Annotated[
        int,
        Field(
            ge=0,
            description="Utterances that the model computes at once; 0 chooses by the device and "
            "its memory.",
        ),
    ] = 0

    @field_validator("temperature", mode="before")
    @classmethod
    def _ladder(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (value,)
        if not isinstance(value, list | tuple):
            return value
        try:
            return tuple(float(t) for t in value)
        except (TypeError, ValueError):
            raise ValueError(f"{value!r}: give numbers, such as 0 or 0.2") from None
