"""The audio of rows that are there already: the very samples that the build took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from speechmill import audio
from speechmill.dataset.layout import part_of
from speechmill.dataset.schema import IDENTITY_COLUMNS
from speechmill.enrich.staging import RowKey, row_keys
from speechmill.errors import DamagedError, DatasetError
from speechmill.pipeline.intake import (
    Choices,
    ReadyRecording,
    ReadyRow,
    decode_into,
    fetch_into,
    recorded,
)
from speechmill.recipe import Recipe
from speechmill.records import Part, Recording, key_of
from speechmill.speech.segmentation import Row
from speechmill.storage import Store

__all__ = [
    "SPAN_COLUMNS",
    "FetchedSpans",
    "RecordingSpans",
    "decoded_by",
    "fetch_spans",
    "recordings_of",
]

SPAN_COLUMNS = ("folder_name", *IDENTITY_COLUMNS, "start_s", "end_s", "channel")
"""What says which audio a row is of."""


@dataclass(frozen=True, slots=True)
class RecordingSpans:
    """A recording that has rows in a part: their spans, in seconds of its clock; the channels that
    they are of, None for the mix; and other columns of these rows that were asked for, by name."""

    part_key: str
    part: Part
    recording: Recording
    spans: tuple[tuple[float, float], ...]
    channels: tuple[int | None, ...]
    columns: tuple[Mapping[str, Any], ...] = ()

    @property
    def audio_s(self) -> float:
        """Seconds of audio in its rows."""
        return sum(end - start for start, end in self.spans)

    @property
    def length_s(self) -> float:
        """Seconds from the recording's beginning to the end of its last row."""
        return max(end for _, end in self.spans)

    def row_key(self, index: int) -> RowKey:
        """The row of span number ``index``."""
        one = self.recording
        return (one.file_name, one.size, one.etag, *self.spans[index], self.channels[index])


@dataclass(slots=True, eq=False)
class FetchedSpans:
    """A recording that was fetched and decoded again, cut as its rows are.

    ``lost`` says why there is no audio of its rows: ``gone`` from the source, ``changed`` since
    they were made, or ``failed`` (``ready.failure`` says how). ``ready.rows`` are those of
    ``asked.spans``, in order.
    """

    asked: RecordingSpans
    ready: ReadyRecording
    changed: bool = False

    @property
    def lost(self) -> str:
        """Why there is no audio of it; "" where there is."""
        if self.ready.gone:
            return "gone"
        if self.changed:
            return "changed"
        return "failed" if self.ready.failure else ""

    @property
    def reason(self) -> str:
        """``lost`` in words."""
        failure = self.ready.failure
        if self.lost == "failed" and failure:
            return f"{failure.error}: {failure.message}"
        return {"gone": "gone from the source", "changed": "changed in the source"}.get(
            self.lost, ""
        )


def recordings_of(
    part_key: str, rows: pa.Table, columns: Sequence[str] = ()
) -> Iterator[RecordingSpans]:
    """The recordings of some rows of a part, in order.

    The rows have ``SPAN_COLUMNS``; the values of other ``columns`` are handed on, None where the
    part lacks one.
    """
    keys: dict[str, list[RowKey]] = {}
    values: dict[str, list[Mapping[str, Any]]] = {}
    first: dict[str, tuple[str, Recording]] = {}
    there = [name for name in columns if name in rows.column_names]
    asked = rows.select(there).to_pylist() if there else [{}] * rows.num_rows
    for folder_name, modified_us, key, row in zip(
        rows["folder_name"].to_pylist(),
        rows["source_modified"].cast(pa.int64()).to_pylist(),
        row_keys(rows),
        asked,
        strict=True,
    ):
        name, size, etag, *_ = key
        keys.setdefault(name, []).append(key)
        values.setdefault(name, []).append({column: row.get(column) for column in columns})
        first.setdefault(name, (folder_name, Recording(key_of(name), size, etag, modified_us)))
    for name, (folder_name, recording) in first.items():
        part = part_of(part_key, folder_name)
        spans = tuple((start_s, end_s) for *_, start_s, end_s, _ in keys[name])
        channels = tuple(channel for *_, channel in keys[name])
        yield RecordingSpans(part_key, part, recording, spans, channels, tuple(values[name]))


def decoded_by(recipe: Recipe, sink_url: str) -> Choices:
    """How recordings became rows, by a recipe of the sink.

    Raises:
        DatasetError: its rows were decoded in another way than this Speechmill does.
    """
    decoded = recipe.choices.get("audio", {})
    if decoded.get("version") != audio.AUDIO_VERSION:
        raise DatasetError(
            f"the rows of {sink_url} were decoded by version {decoded.get('version')} of the audio "
            f"code, this Speechmill has {audio.AUDIO_VERSION}: it cannot take the same audio "
            "again. Use the Speechmill that made them, or speechmill build --rebuild"
        )
    return Choices(bool(decoded.get("keep_damaged")), decoded.get("track"))


def fetch_spans(source: Store, asked: RecordingSpans, choices: Choices) -> FetchedSpans:
    """Fetch and decode a recording, and cut it as its rows are.

    Raises:
        UnavailableError: the source as a whole is down or gone.
    """
    ready = ReadyRecording(asked.part, asked.recording, asked.part.folder_name)
    taken = FetchedSpans(asked, ready)
    blob = None
    with recorded(ready, "fetch"):
        blob = fetch_into(ready, source)
    if blob is None:
        return taken
    now = ready.recording
    if (now.size, now.etag) != (asked.recording.size, asked.recording.etag):
        taken.changed = True
        return taken
    with recorded(ready, "decode"):
        # It has rows: so it was within the limits of the job that made them.
        decode_into(ready, blob, list(dict.fromkeys(asked.channels)), choices, audio.NO_LIMITS)
        if round(asked.length_s * ready.sample_rate) > round(ready.duration_s * ready.sample_rate):
            raise DamagedError(
                f"its rows reach to {asked.length_s:.3f} s, and it has only {ready.duration_s:.3f}"
            )
        signals = {signal.channel: signal for signal in ready.signals}
        ready.rows = [
            ReadyRow(ready, signals[channel], Row(start, end, ()))
            for (start, end), channel in zip(asked.spans, asked.channels, strict=True)
        ]
    if not ready.is_good:  # of several channels some may be there
        ready.release()
    return taken
