"""Which recordings of the source a job takes, and which folder each of them is in."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from speechmill.job.options import Name, Options, Texts, parse_options

__all__ = ["RecordingOptions", "Selection"]

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _as_text(value: object) -> object:
    """A number as the flag has it, which a job file has as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Selection(Options):
    """Which files are taken as recordings, by name."""

    panel: ClassVar[str] = "Recordings"

    extension: Texts = Field(
        (), description="Choose recordings by extension [default: every format we decode]."
    )
    include: Texts = Field(
        (),
        description="Choose only paths that match this glob ('*' also matches '/'), or this "
        "folder, such as 'p2*' or p225.",
    )
    exclude: Texts = Field((), description="Leave out paths that match this glob or folder.")

    @field_validator("extension")
    @classmethod
    def _bare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(e.lower().lstrip(".") for e in value)


class RecordingOptions(Selection):
    """Which recordings are made into rows, and how these are sorted."""

    limit: int | None = Field(
        None, ge=1, description="Take at most so many recordings that are to be done."
    )
    folder: Name = Field(
        "parent",
        description="What folder_name is: parent, first, path, or a regular expression "
        "over the path whose first group it is.",
    )
    partition_by: str = Field(
        "folder",
        description="What the part files are sorted by: folder; none; or hash:N, N groups of "
        "folders. For corpora of very many small folders.",
    )
    keep_damaged: bool = Field(
        False,
        description="Make rows of what can be decoded of truncated and damaged recordings, "
        "flagged, instead of failures.",
    )
    channels: Annotated[str, BeforeValidator(_as_text)] = Field(
        "mix",
        description="What is taken of a recording's channels: mix, their average; split, each by "
        "itself, in rows of its own; or one of them by its number, from 0.",
    )
    track: int | None = Field(
        None,
        ge=0,
        description="Which audio track of a file with several, from 0 [default: the file's own "
        "default].",
    )
    max_duration_s: float = Field(
        12 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Recordings that are longer are failures, seconds.",
    )
    decode_limit: dict[Literal["ratio", "load", "channels"], _Positive] = Field(
        default_factory=dict,
        description="Another limit of what a recording may cost, such as ratio=20000: ratio "
        "(decoded bytes to stored ones), load (processor seconds a second of audio), channels.",
    )

    @field_validator("decode_limit", mode="before")
    @classmethod
    def _decode_limits(cls, value: object) -> object:
        return parse_options(value, "ratio=20000")

    @field_validator("channels")
    @classmethod
    def _channels(cls, value: str) -> str:
        if value in ("mix", "split"):
            return value
        if not re.fullmatch(r"\d{1,4}", value, re.ASCII):
            raise ValueError(f"must be mix, split, or a channel's number from 0, not {value!r}")
        return str(int(value))

    @field_validator("partition_by")
    @classmethod
    def _partition_rule(cls, value: str) -> str:
        if not re.fullmatch(r"folder|none|hash:[1-9]\d{0,5}", value):
            raise ValueError(f"must be folder, none, or hash:N such as hash:64, not {value!r}")
        return value

    @field_validator("folder")
    @classmethod
    def _folder_rule(cls, value: str) -> str:
        if value not in ("parent", "first", "path"):
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
            if groups < 1:
                raise ValueError(
                    "must be parent, first, path, or a regular expression with a group, "
                    f"such as '^([^/]+)/'; {value!r} has no group"
                )
        return value
