"""Rows for tests, without audio."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from speechmill.dataset.schema import row_schema, utterances_to_table
from speechmill.records import Recording, Transcript, Utterance

SCHEMA = row_schema(())


def utterance(recording: Recording, folder_name: str = "p1", text: str = "") -> Utterance:
    return Utterance(
        recording=recording,
        folder_name=folder_name,
        start_s=0.0,
        end_s=1.0,
        sample_rate=16_000,
        channels=1,
        transcript=Transcript(text or f"text of {recording.file_name} {recording.etag}"),
    )


def rows(recordings: Sequence[Recording], recipe: str = "r1", folder_name: str = "p1") -> pa.Table:
    return utterances_to_table([utterance(r, folder_name) for r in recordings], SCHEMA, recipe)
