"""Sinks made without audio, and what has become of them in other files."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import speechmill
from speechmill.dataset.layout import data_key
from speechmill.dataset.reader import list_parts
from speechmill.dataset.schema import row_schema, to_parquet, utterances_to_table
from speechmill.export import repartition as module
from speechmill.export.files import Place, in_threads
from speechmill.export.repartition import RepartitionReport
from speechmill.records import Codes, Part, Recording, Transcript, Utterance
from speechmill.storage import Store, open_store
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from tests.support.corpus import build, memory, wav

LANGUAGES = ["en", "de", None, "yue", "en", ""]
FOLDERS = ["p225", "007", "225", "a=b", "50%", "Zoë", "x" * 300, "..", "true", "2023-01-01"]
SCHEMA = row_schema([column_of(FakeTokenizer())])


def utterance(folder: str, number: int) -> Utterance:
    """A row whose values differ from those of all others."""
    name = f"{folder}/{number:05d}.wav"
    codes = (pa.array(range(4 * 3)).to_numpy().reshape(4, 3) + number % 1000).astype("int16")
    return Utterance(
        recording=Recording(name, number, f"tag-{number}", 1_700_000_000_000_000 + number),
        folder_name=folder,
        start_s=0.0,
        end_s=1.0 + number,
        sample_rate=(8_000, 16_000)[number % 2],
        channels=1,
        transcript=Transcript(f"text {name}", language=LANGUAGES[number % len(LANGUAGES)]),
        codes=(Codes(codes),),
    )


def make_sink(url: str, rows: Sequence[tuple[str, int, int]]) -> Store:
    """A sink with parts of (folder, part's number, rows), made without audio."""
    build(memory({"x/1.wav": wav()}), url)
    store = open_store(url)
    for part in list_parts(store):
        store.delete(part.key)
    count = itertools.count()
    for folder, index, num_rows in rows:
        table = utterances_to_table(
            [utterance(folder, next(count)) for _ in range(num_rows)], SCHEMA, "r1"
        )
        store.put(data_key(Part(folder, index, 99)), to_parquet(table))
    return store


@functools.cache
def sink() -> str:
    url = memory()
    sizes = [(folder, index, 7 + i + index) for i, folder in enumerate(FOLDERS) for index in (0, 1)]
    make_sink(url, sizes)
    return url


def run(
    sink: str, out: str | Place, by: Sequence[str] = ("language", "folder_name"), **options: Any
) -> RepartitionReport:
    place = out if isinstance(out, Place) else Place(out)
    return module.repartition(Place(sink), place, by, **{"run": in_threads, **options})


def files(store: Store) -> dict[str, bytes]:
    return {o.key: store.get(o.key).data for o in store.list("data")}


def tables(store: Store) -> dict[str, pa.Table]:
    found = {}
    for key, data in files(store).items():
        found[key] = pq.read_table(pa.BufferReader(data), partitioning=None)
    return found


def all_rows(url: str) -> pa.Table:
    return speechmill.open_dataset(url).to_table()
