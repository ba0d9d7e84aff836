"""The columns: fixed names and types, tokens as they are, one order of rows."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from speechmill.dataset.schema import (
    METADATA_KEY,
    SCHEMA_VERSION,
    row_schema,
    sort_rows,
    to_parquet,
    token_column,
    utterances_to_table,
)
from speechmill.records import Codes, Recording, Transcript, Utterance
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.tokenizers.mfcc import MfccTokenizer
from tests.support.rows import rows, utterance

FAKE = row_schema([column_of(FakeTokenizer())])


class Big(FakeTokenizer):
    name = "big"
    codebook_size = 32_769


def with_codes(codes: Codes, file_name: str) -> Utterance:
    recording = Recording(file_name, 1, "tag", 0)
    return Utterance(recording, "p", 0.0, 1.0, 16_000, 1, Transcript(""), codes=(codes,))


def read_back(table: pa.Table) -> pa.Table:
    return pq.read_table(pa.BufferReader(to_parquet(table)), page_checksum_verification=True)


def test_codes_are_int16_up_to_32768_of_them_and_features_are_float() -> None:
    for tokenizer, name in (
        (MfccTokenizer(), "float"),
        (FakeTokenizer(), "int16"),
        (Big(), "int32"),
    ):
        of_type = row_schema([column_of(tokenizer)]).field("token").type
        assert str(of_type.value_type.value_type) == name


def test_the_first_tokenizer_has_the_column_token_and_others_their_own() -> None:
    assert token_column(0, "mfcc") == "token"
    assert token_column(1, "mfcc") == "token_mfcc"
    names = row_schema([column_of(MfccTokenizer()), column_of(FakeTokenizer())]).names
    assert names[:5] == ["folder_name", "file_name", "transcription", "token", "token_fake"]
    assert "token" in row_schema(()).names


def test_the_files_metadata_say_how_to_decode_the_tokens() -> None:
    metadata = read_back(rows([]).cast(row_schema(()))).schema.metadata
    assert json.loads(metadata[METADATA_KEY]) == {
        "schema_version": SCHEMA_VERSION,
        "tokenizers": [],
    }
    (told,) = json.loads(FAKE.metadata[METADATA_KEY])["tokenizers"]
    assert told == {
        "column": "token",
        "name": "fake",
        "sample_rate": 16_000,
        "hop_length": 320,
        "frame_rate": 50.0,
        "num_codebooks": 4,
        "codebook_size": 1024,
        "bitrate_bps": 2000.0,
        "recipe": {"tokenizer": "fake", "version": 1},
    }


shapes = st.tuples(st.integers(0, 4), st.integers(0, 5))


@settings(deadline=None)
@given(st.lists(hnp.arrays(np.int16, shapes), max_size=5))
def test_tokens_are_read_as_they_were_written(codes: list[np.ndarray]) -> None:
    utterances = [with_codes(Codes(values), f"{i}.wav") for i, values in enumerate(codes)]
    table = read_back(utterances_to_table(utterances, FAKE, "r"))
    assert table["token"].to_pylist() == [values.tolist() for values in codes]
    table.validate(full=True)


def test_tokens_that_are_no_contiguous_array_are_written_right() -> None:
    values = np.arange(40, dtype=np.int16).reshape(10, 4).T[:, ::2]
    table = read_back(utterances_to_table([with_codes(Codes(values), "a")], FAKE, "r"))
    assert table["token"].to_pylist() == [values.tolist()]


def test_no_tokens_are_null() -> None:
    assert rows([Recording("a", 1, "t", 0)])["token"].to_pylist() == [None]
    assert rows([]).num_rows == 0


@settings(deadline=None)
@given(st.permutations([f"{c}/é{i}.wav" for i in range(3) for c in "abB"]))
def test_a_parts_bytes_do_not_depend_on_the_order_of_arrival(names: list[str]) -> None:
    def part(some: list[str]) -> bytes:
        return to_parquet(sort_rows(rows([Recording(n, 1, "t", 0) for n in some])))

    assert part(names) == part(sorted(names))


def test_flags_of_audio_and_of_text_come_together_once_and_in_order() -> None:
    base = utterance(Recording("a", 1, "t", 0))
    both = Utterance(
        base.recording, "p", 0.0, 1.0, 8_000, 1, Transcript("x", flags=("b", "a")), (), ("c", "a")
    )
    table = utterances_to_table([both], row_schema(()), "r")
    assert table["flags"].to_pylist() == [["a", "b", "c"]]
