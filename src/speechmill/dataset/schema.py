"""The columns of a row, and how rows become Arrow tables and Parquet bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.records import Codes, Failure, Recording, Segment, Utterance, Word

__all__ = [
    "FAILURE_SCHEMA",
    "IDENTITY_COLUMNS",
    "METADATA_KEY",
    "SCHEMA_VERSION",
    "TokenColumn",
    "codes_to_array",
    "described_tokenizers",
    "failures_to_table",
    "is_sealed",
    "metadata_of",
    "parquet_writer",
    "row_schema",
    "sort_rows",
    "to_parquet",
    "token_column",
    "utterances_to_table",
    "with_metadata",
    "with_sample_check",
    "with_seal",
    "with_tokenizer",
]

SCHEMA_VERSION = 2
METADATA_KEY = b"speechmill"

INT16_CODES = 32_768  # codes of a codebook up to this size fit int16
# Which version of which recording a row is made of, and how.
IDENTITY_COLUMNS = ("file_name", "source_size", "source_etag", "source_modified", "recipe")


def _list(value: pa.DataType) -> pa.DataType:
    """A list whose items are named as Parquet's specification has them."""
    return pa.list_(pa.field("element", value))


_SEGMENTS = _list(
    pa.struct(
        {
            "start_s": pa.float64(),
            "end_s": pa.float64(),
            "text": pa.string(),
            "avg_logprob": pa.float32(),
            "no_speech_prob": pa.float32(),
        }
    )
)
_WORDS = _list(
    pa.struct(
        {
            "word": pa.string(),
            "start_s": pa.float64(),
            "end_s": pa.float64(),
            "probability": pa.float32(),
        }
    )
)
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_IDENTITY_FIELDS = [
    ("file_name", pa.string()),
    ("source_size", pa.int64()),
    ("source_etag", pa.string()),
    ("source_modified", _TIMESTAMP),
    ("recipe", pa.string()),
]

FAILURE_SCHEMA = pa.schema(
    [
        ("folder_name", pa.string()),
        *_IDENTITY_FIELDS,
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("failed_at", _TIMESTAMP),
    ],
    metadata={METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION}).encode()},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumn:
    """What a dataset keeps of the tokenizer that made a column.

    ``hop_length`` is in samples, ``frame_rate`` in Hz. ``codebook_size`` is None for features.
    ``recipe`` says what the tokens are of; ``spec`` (NAME or NAME:MODEL) and ``options`` where the
    tokenizer can be had again, None where nobody said. ``decodes`` says whether its codes can be
    turned back into sound.
    """

    name: str
    sample_rate: int
    hop_length: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int | None
    recipe: Mapping[str, object]
    spec: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    decodes: bool = False

    @property
    def type(self) -> pa.DataType:
        """The column's type."""
        if self.codebook_size is None:
            return _list(_list(pa.float32()))
        return _list(_list(pa.int16() if self.codebook_size <= INT16_CODES else pa.int32()))

    @property
    def bitrate_bps(self) -> float | None:
        """What the codes take, in bits a second; None for features."""
        if self.codebook_size is None:
            return None
        return self.frame_rate * self.num_codebooks * math.log2(self.codebook_size)

    def described(self, column: str) -> dict[str, Any]:
        """What the metadata tells of it."""
        asked = {} if self.spec is None else {"spec": self.spec, "options": dict(self.options)}
        return {
            "column": column,
            "name": self.name,
            "sample_rate": self.sample_rate,
            "hop_length": self.hop_length,
            "frame_rate": self.frame_rate,
            "num_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "bitrate_bps": self.bitrate_bps,
            "recipe": dict(self.recipe),
            **asked,
        }


def token_column(index: int, name: str) -> str:
    """The column of the job's tokenizer number ``index``."""
    return "token" if index == 0 else f"token_{name}"


def _round_trip_column(index: int, name: str) -> str:
    """The column of how well the job's tokenizer number ``index`` keeps what was said."""
    return "round_trip_cer" if index == 0 else f"round_trip_cer_{name}"


def row_schema(tokenizers: Sequence[TokenColumn] = (), *, round_trip: bool = False) -> pa.Schema:
    """The schema of the rows that these tokenizers give, with all that decoding needs in its
    metadata, as JSON under ``speechmill``.

    ``round_trip`` says whether codes are turned back into sound, and that is transcribed.
    """
    described = [t.described(token_column(i, t.name)) for i, t in enumerate(tokenizers)]
    tokens = [(token_column(i, t.name), t.type) for i, t in enumerate(tokenizers)]
    judged = [
        (_round_trip_column(i, t.name), pa.float32())
        for i, t in enumerate(tokenizers)
        if i > 0 and round_trip and t.decodes
    ]
    metadata = {"schema_version": SCHEMA_VERSION, "tokenizers": described}
    return pa.schema(
        [
            ("folder_name", pa.string()),
            *_IDENTITY_FIELDS[:1],
            ("transcription", pa.string()),
            *(tokens or [("token", _list(_list(pa.float32())))]),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("duration_s", pa.float64()),
            ("sample_rate", pa.int32()),
            ("channels", pa.int32()),
            ("channel", pa.int32()),
            ("language", pa.string()),
            ("language_probability", pa.float32()),
            ("language_heard", pa.string()),
            ("avg_logprob", pa.float32()),
            ("no_speech_prob", pa.float32()),
            ("compression_ratio", pa.float32()),
            ("repetition", pa.float32()),
            ("temperature", pa.float32()),
            ("window_s", pa.float32()),
            ("voiced_s", pa.float32()),
            ("chars_per_voiced_s", pa.float32()),
            (_round_trip_column(0, ""), pa.float32()),
            *judged,
            ("flags", _list(pa.string())),
            *_IDENTITY_FIELDS[1:],
            ("fetch_s", pa.float32()),
            ("decode_s", pa.float32()),
            ("transcribe_s", pa.float32()),
            ("tokenize_s", pa.float32()),
            # Last, because fastparquet miscounts the columns that come after structs.
            ("segments", _SEGMENTS),
            ("words", _WORDS),
        ],
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )


def with_tokenizer(schema: pa.Schema, column: str, tokenizer: TokenColumn) -> pa.Schema:
    """The schema of a part with the column of one more tokenizer, as ``row_schema`` has it; the
    same where the part has it already."""
    described = described_tokenizers(schema)
    if any(one["column"] == column for one in described):
        return schema
    added = pa.field(column, tokenizer.type)
    if column in schema.names:  # null, of a dataset without tokens
        schema = schema.set(schema.names.index(column), added)
    else:
        last = max(i for i, name in enumerate(schema.names) if _is_token_column(name))
        schema = schema.insert(last + 1, added)
    return with_metadata(schema, tokenizers=[*described, tokenizer.described(column)])


def _is_token_column(name: str) -> bool:
    return name == "token" or name.startswith("token_")


def metadata_of(schema: pa.Schema) -> dict[str, Any]:
    """What the metadata of a part's schema tells; nothing where it is not of Speechmill."""
    return dict(json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}")))


def with_metadata(schema: pa.Schema, **told: object) -> pa.Schema:
    """The schema with this in its metadata, besides what is there under other names."""
    metadata = json.dumps({**metadata_of(schema), **told}, sort_keys=True)
    return schema.with_metadata({METADATA_KEY: metadata.encode()})


def is_sealed(schema: pa.Schema) -> bool:
    """Whether a part of this schema takes no more recordings (``growth.py``)."""
    return bool(metadata_of(schema).get("sealed", False))


def with_seal(schema: pa.Schema) -> pa.Schema:
    """The schema of a part that takes no more recordings."""
    return with_metadata(schema, sealed=True)


def described_tokenizers(schema: pa.Schema) -> list[dict[str, Any]]:
    """What a schema's metadata tells of its tokenizers, in the job's order."""
    return list(metadata_of(schema).get("tokenizers", []))


def with_sample_check(schema: pa.Schema, mismatch: Mapping[str, Sequence[float]]) -> pa.Schema:
    """The schema with ``sample_mismatch`` in the metadata of each tokenizer that was checked: the
    share of codes, for each codebook, that came out otherwise when a row was encoded alone."""
    described = described_tokenizers(schema)
    for one in described:
        if one["name"] in mismatch:
            one["sample_mismatch"] = list(mismatch[one["name"]])
    return with_metadata(schema, tokenizers=described)


def codes_to_array(codes: Sequence[Codes], of_type: pa.DataType) -> pa.Array:
    """[num_codebooks, num_frames] arrays as list<list<…>>, without a Python object a value."""
    inner_type = of_type.value_type
    shapes = [c.values.shape for c in codes]
    rows = np.concatenate([[0], np.cumsum([s[0] for s in shapes])]).astype(np.int32)
    frames = np.concatenate([[0], *([s[1]] * s[0] for s in shapes)])
    flat = np.concatenate([c.values.reshape(-1) for c in codes]) if codes else np.empty(0)
    values = pa.array(flat, type=inner_type.value_type)
    inner = pa.ListArray.from_arrays(
        pa.array(np.cumsum(frames).astype(np.int32)), values, type=inner_type
    )
    return pa.ListArray.from_arrays(pa.array(rows), inner, type=of_type)


def _structs(
    values: Sequence[Segment] | Sequence[Word], of_type: pa.DataType
) -> list[dict[str, object]]:
    """Segments or words as the structs that a list of this type holds."""
    names = [one.name for one in of_type.value_type]
    return [{name: getattr(value, name) for name in names} for value in values]


def _identity(recordings: Sequence[Recording], recipe: str) -> dict[str, Any]:
    return {
        "file_name": [r.file_name for r in recordings],
        "source_size": [r.size for r in recordings],
        "source_etag": [r.etag for r in recordings],
        "source_modified": [r.modified_us for r in recordings],
        "recipe": [recipe] * len(recordings),
    }


# Columns that are what an utterance, or its transcript, says under the same name.
OF_UTTERANCES = (
    "start_s", "end_s", "sample_rate", "channels", "channel", "voiced_s", "repetition",
    "chars_per_voiced_s", "fetch_s", "decode_s", "transcribe_s", "tokenize_s",
)  # fmt: skip
OF_TRANSCRIPTS = (
    "language", "language_probability", "language_heard", "avg_logprob", "no_speech_prob",
    "compression_ratio", "temperature", "window_s",
)  # fmt: skip


def utterances_to_table(
    utterances: Sequence[Utterance], schema: pa.Schema, recipe: str
) -> pa.Table:
    """Rows as an Arrow table of ``schema``."""
    transcripts = [u.transcript for u in utterances]
    columns: dict[str, Any] = {
        "folder_name": [u.folder_name for u in utterances],
        **_identity([u.recording for u in utterances], recipe),
        "transcription": [t.text for t in transcripts],
        "duration_s": [u.end_s - u.start_s for u in utterances],
        "segments": [_structs(t.segments, _SEGMENTS) for t in transcripts],
        "words": [None if t.words is None else _structs(t.words, _WORDS) for t in transcripts],
        "flags": [sorted({*u.flags, *u.transcript.flags}) for u in utterances],
    }
    columns |= {name: [getattr(u, name) for u in utterances] for name in OF_UTTERANCES}
    columns |= {name: [getattr(t, name) for t in transcripts] for name in OF_TRANSCRIPTS}
    token_fields = [f for f in schema if _is_token_column(f.name)]
    num_codes = len(utterances[0].codes) if utterances else 0
    for i, token_field in enumerate(token_fields):
        columns[token_field.name] = (
            codes_to_array([u.codes[i] for u in utterances], token_field.type)
            if i < num_codes
            else pa.nulls(len(utterances), token_field.type)
        )
    columns[_round_trip_column(0, "")] = [None] * len(utterances)
    for i, described in enumerate(described_tokenizers(schema)):
        columns[_round_trip_column(i, described["name"])] = [
            u.round_trip_cer[i] if u.round_trip_cer else None for u in utterances
        ]
    for name in (n for n in schema.names if n not in columns):
        columns[name] = [u.measured.get(name) for u in utterances]
    arrays = [
        c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, type=f.type)
        for f in schema
    ]
    return pa.table(arrays, schema=schema)


def failures_to_table(
    failures: Sequence[Failure], recipe: str, attempts: Mapping[str, int], failed_at_us: int
) -> pa.Table:
    """Failures as a table of ``FAILURE_SCHEMA``; ``attempts`` by file name, 1 where not given."""
    columns: dict[str, Any] = {
        "folder_name": [f.folder_name for f in failures],
        **_identity([f.recording for f in failures], recipe),
        "stage": [f.stage for f in failures],
        "error": [f.error for f in failures],
        "message": [f.message for f in failures],
        "attempts": [attempts.get(f.recording.file_name, 1) for f in failures],
        "failed_at": [failed_at_us] * len(failures),
    }
    return pa.table(
        [pa.array(columns[f.name], type=f.type) for f in FAILURE_SCHEMA], schema=FAILURE_SCHEMA
    )


def sort_rows(table: pa.Table) -> pa.Table:
    """The order of rows in a part: it does not depend on the order of arrival."""
    keys = ("file_name", "channel", "start_s")
    return table.sort_by([(name, "ascending") for name in keys if name in table.column_names])


# Data page 1.0 and plain encodings are what every reader takes, fastparquet's flat columns among
# them; page checksums tell a torn read from rows.
PARQUET_OPTIONS = {
    "compression": "zstd",
    "data_page_version": "1.0",
    "write_page_checksum": True,
    "store_schema": True,
}
# Columns whose few different values a small dictionary holds.
FEW_VALUES = (
    *("folder_name", "language", "recipe", "stage", "error"),
    *("sample_rate", "channels", "channel"),
)


def parquet_writer(where: Path | pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """What writes rows of a schema into a Parquet file."""
    few = [name for name in FEW_VALUES if name in schema.names]
    return pq.ParquetWriter(where, schema, use_dictionary=few, **PARQUET_OPTIONS)


def to_parquet(table: pa.Table) -> bytes:
    """A part file's bytes."""
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
