"""What a job says of transcription. A new option is one field here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from speechmill.job.options import Name, Options, Texts

__all__ = ["ModelOptions", "SegmentationOptions", "SpokenOptions", "TranscriptionOptions"]


class ModelOptions(Options):
    """Which model transcribes, by which backend."""

    panel: ClassVar[str] = "Transcription"

    transcriber: str = Field(
        "whisper",
        description="Transcription backend: whisper, openai-whisper, transformers or fake.",
    )
    model: Name = Field(
        "base", description="Whisper model: tiny … large-v3, turbo, a folder or a hub id."
    )


class SpokenOptions(Options):
    """What is spoken, and what is to be written of it."""

    panel: ClassVar[str] = "Transcription"

    language: str | None = Field(
        None, description="Language spoken, such as en [default: detected per recording]."
    )
    languages: Texts = Field(
        (), description="Allow detection of these languages only; may be given several times."
    )
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="transcribe, or translate to English."
    )


class SegmentationOptions(Options):
    """How recordings are cut before they are transcribed."""

    panel: ClassVar[str] = "Transcription"

    segment: Literal["auto", "vad", "none"] = Field(
        "auto",
        description="Rows of a recording: vad cuts it at silences into utterances of up to "
        "30 s, none keeps it whole, auto cuts what is longer than 30 s.",
    )


class TranscriptionOptions(Options):
    """How a model transcribes."""

    panel: ClassVar[str] = "Transcription"

    window: Literal["adaptive", "full"] = Field(
        "adaptive",
        description="Audio that Whisper computes: adaptive is as long as the speech needs, "
        "full is always 30 s.",
    )
    beam_size: int = Field(5, ge=1, description="Beams of the decoder; 1 is greedy.")
    temperature: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        min_length=1,
        description="Sampling temperatures, tried in turn until the text is sure enough.",
    )
    words: bool = Field(
        False, description="Give each word its times and probability, in the column words."
    )
    initial_prompt: str | None = Field(
        None, description="Text that each recording is to continue: it sets style and spelling."
    )
    hotwords: str | None = Field(None, description="Names and terms that are likely to be spoken.")
    suppress_numerals: bool = Field(False, description="Spell numbers out: 'six', never '6'.")
    device: str = Field("auto", description="Where the model runs: auto, cpu or cuda.")
    compute_type: str = Field(
        "auto", description="Number format of the model: auto, int8, float16, float32, …"
    )
    batch_size: int = Field(
        0,
        ge=0,
        description="Utterances that the model computes at once; 0 chooses by the device and "
        "its memory.",
    )

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
