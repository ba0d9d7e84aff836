"""Reading parts: a few columns of large ones by ranges, always of one version."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.dataset.commit import versions
from speechmill.dataset.layout import data_key
from speechmill.dataset.reader import WHOLE_BYTES, dataset_of, list_parts, read_columns, scan
from speechmill.dataset.schema import IDENTITY_COLUMNS, row_schema, to_parquet, utterances_to_table
from speechmill.errors import ConflictError, DatasetError
from speechmill.records import Codes, Part, Recording, Transcript, Utterance
from speechmill.storage import Store, StoreOptions, open_store
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.columns import column_of
from tests.support.services import SeaweedFS

PART = Part("p1", 0, 1)
KEY = data_key(PART)
numbers = itertools.count()


def big_part(num_rows: int, recipe: str) -> bytes:
    """A part of several megabytes: noise for tokens, which does not compress."""
    noise = np.random.default_rng(num_rows)
    utterances = [
        Utterance(
            Recording(f"p1/{i:04d}.wav", i, f"e{i}", i),
            "p1",
            0.0,
            1.0,
            16_000,
            1,
            Transcript(f"row {i}"),
            (Codes(noise.normal(size=(20, 300)).astype(np.float32)),),
        )
        for i in range(num_rows)
    ]
    data = to_parquet(
        utterances_to_table(utterances, row_schema([column_of(open_tokenizer("mfcc", {}))]), recipe)
    )
    assert len(data) > 2 * WHOLE_BYTES
    return data


class Watched:
    """A store that counts what is read of it, and may change between two reads."""

    def __init__(self, store: Store, between: Callable[[], object] = lambda: None) -> None:
        self._store, self._between = store, between
        self.fetched = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        data = self._store.read(key, start, length, etag=etag)
        self.fetched += length
        self._between()
        return data


def memory() -> Store:
    return open_store(f"memory://reader-{next(numbers)}")


def test_a_few_columns_of_a_large_part_cost_a_few_bytes() -> None:
    store = memory()
    data = big_part(120, "r1")
    store.put(KEY, data)
    watched: Any = Watched(store)
    table = read_columns(watched, list_parts(store)[0], [*IDENTITY_COLUMNS, "no such column"])
    assert table.num_rows == 120
    assert versions(table)["p1/0007.wav"].etag == "e7"
    assert 0 < watched.fetched < len(data) / 4


def test_a_part_replaced_while_it_is_read_is_read_again_whole() -> None:
    store = memory()
    store.put(KEY, big_part(120, "old"))
    listed = list_parts(store)[0]
    replacements = iter([big_part(150, "new")])

    def replace() -> None:
        if (data := next(replacements, None)) is not None:
            store.put(KEY, data)

    table = read_columns(Watched(store, replace), listed, ["file_name", "recipe"])
    assert table.num_rows == 150
    assert set(table["recipe"].to_pylist()) == {"new"}


def test_a_part_that_never_stays_the_same_is_an_error_in_the_end() -> None:
    store = memory()
    versions_of_it = itertools.cycle([big_part(120, "r1"), big_part(130, "r2")])
    store.put(KEY, next(versions_of_it))
    watched: Any = Watched(store, lambda: store.put(KEY, next(versions_of_it)))
    with pytest.raises(ConflictError, match="replaced"):
        read_columns(watched, list_parts(store)[0], ["file_name"])


def test_a_large_part_that_is_damaged_is_named_with_what_to_do() -> None:
    store = memory()
    data = bytearray(big_part(120, "r1"))
    store.put(KEY, bytes(data[:-50]))
    with pytest.raises(DatasetError, match=r"part-00-of-01\.parquet.*remove the file"):
        read_columns(store, list_parts(store)[0], ["file_name"])
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0)
    chunk = next(c for i in range(99) if (c := group.column(i)).path_in_schema == "file_name")
    page = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[page : page + 8] = bytes(8)
    store.put(KEY, bytes(data))
    with pytest.raises(DatasetError, match="remove the file"):
        read_columns(store, list_parts(store)[0], ["file_name", "source_etag"])


def test_ranges_of_a_real_bucket_give_what_the_whole_part_holds(
    object_store: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name, value in object_store.write_profile(tmp_path, "reader").items():
        monkeypatch.setenv(name, value)
    url = f"s3://dst/reader-{next(numbers)}"
    store = open_store(url, StoreOptions(profile="reader"))
    store.put(KEY, big_part(130, "r1"))
    (part, table), *others = scan(store, ["file_name", "transcription", "duration_s"])
    assert not others
    assert part.key == KEY
    whole = dataset_of(store).to_table()
    assert table.equals(pa.table(whole.select(table.column_names)).cast(table.schema))
