"""Tokens out of a sink: as arrays, through Python lists, and as batches for training.

A sink in a local folder is filled with noise in place of MFCC and codes. Timed for each token
column: reading it into Arrow; ``tokens_to_arrays``; and ``to_pylist`` with ``numpy.array`` around
each row, as one would without. The ways take turns; the ratio is that of the medians. Then epochs
of ``speechmill.torch``, collated: by how many DataLoader workers, and how many rows a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks.figures import command, machine, print_table
from speechmill import open_dataset, tokens_to_arrays
from speechmill.dataset.layout import data_key
from speechmill.dataset.schema import row_schema, to_parquet, utterances_to_table
from speechmill.dataset.state import Claim, agree_on_source
from speechmill.recipe import Recipe
from speechmill.records import Codes, Part, Recording, Transcript, Utterance
from speechmill.storage import open_store
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.tokenizers.mfcc import MfccTokenizer
from speechmill.torch import BucketBatchSampler, SpeechDataset, SpeechStream, collate

ROWS_A_PART = 300  # about half an hour of clips
SECONDS = (2.0, 10.0)
COLUMNS = {"token": "MFCC, 20 at 31.25 Hz", "token_fake": "codes, 4 at 50 Hz"}
MAX_FRAMES = 5_000


def fill(sink: str, rows: int) -> float:
    """Write a sink of so many rows. Returns the seconds of audio that they stand for."""
    store, recipe = open_store(sink), Recipe({"benchmark": "reading"})
    agree_on_source(store, Claim(source_url="noise", folder="parent", recipe=recipe))
    schema = row_schema([column_of(MfccTokenizer()), column_of(FakeTokenizer())])
    rng = np.random.default_rng(0)
    seconds = 0.0
    for start in range(0, rows, ROWS_A_PART):
        folder = f"p{start // ROWS_A_PART:03d}"
        utterances = []
        for i in range(min(ROWS_A_PART, rows - start)):
            duration_s = float(rng.uniform(*SECONDS))
            frames, codes = int(duration_s * 31.25) + 1, int(duration_s * 50) + 1
            utterances.append(
                Utterance(
                    Recording(f"{folder}/{i:04d}.wav", 1, "e", 1),
                    folder,
                    0.0,
                    duration_s,
                    16_000,
                    1,
                    Transcript("a sentence of some ten words as it was said once"),
                    (
                        Codes(rng.normal(size=(20, frames)).astype(np.float32)),
                        Codes(rng.integers(0, 1_024, (4, codes), np.int16)),
                    ),
                )
            )
            seconds += duration_s
        table = utterances_to_table(utterances, schema, recipe.id)
        store.put(data_key(Part(folder, 0, 1)), to_parquet(table))
    return seconds


def through_lists(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """What one writes without ``tokens_to_arrays``."""
    dtype = column.type.value_type.value_type.to_pandas_dtype()
    return [np.array(row, dtype) for row in column.to_pylist()]


def timed(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each, taken in turn."""
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def ways(sink: str, name: str, repeats: int) -> list[str]:
    """A line of the table: what a row of this column costs, each way."""
    column = open_dataset(sink).to_table(columns=[name])[name]
    for one, other in zip(tokens_to_arrays(column), through_lists(column), strict=True):
        if one is None or not np.array_equal(one, other):
            raise SystemExit(f"{name}: the two ways differ")
    seconds = timed(
        {
            "read": lambda: open_dataset(sink).to_table(columns=[name]),
            "arrays": lambda: tokens_to_arrays(column),
            "lists": lambda: through_lists(column),
        },
        repeats,
    )
    a_row = {way: f"{1e6 * s / len(column):,.1f} µs" for way, s in seconds.items()}
    ratio = f"{seconds['lists'] / seconds['arrays']:.0f} ×"
    return [f"`{name}` ({COLUMNS[name]})", a_row["read"], a_row["arrays"], a_row["lists"], ratio]


def epoch(batches: Iterable[dict[str, object]], rows: int) -> None:
    """Go through an epoch."""
    names = [name for batch in batches for name in batch["file_name"]]  # type: ignore[attr-defined]
    if len(set(names)) != rows or len(names) != rows:
        raise SystemExit(f"{len(names)} rows of {rows}, {len(set(names))} of them different")


def epochs(sink: str, options: argparse.Namespace, audio_s: float) -> list[list[str]]:
    """The lines of the second table."""
    columns = ("file_name", "transcription", "token")
    stream = SpeechStream(sink, columns=columns, max_frames=MAX_FRAMES)
    dataset = SpeechDataset(sink, columns=columns)
    sampler = BucketBatchSampler(dataset, max_frames=MAX_FRAMES)
    actions: dict[str, Callable[[], object]] = {}
    for workers in options.workers:
        by = {"SpeechStream": (stream, None), "SpeechDataset": (dataset, sampler)}
        for kind, (rows, batch_sampler) in by.items():
            how = {"batch_size": None} if batch_sampler is None else {"batch_sampler": sampler}
            loader = DataLoader(
                rows,
                num_workers=workers,
                collate_fn=collate,
                persistent_workers=workers > 0,
                **how,
            )
            epoch(loader, options.rows)  # starts the workers
            name = f"`{kind}`, {workers or 'no'} workers"
            actions[name] = lambda loader=loader: epoch(loader, options.rows)  # type: ignore[misc]
    return [
        [name, f"{options.rows / s:,.0f}", f"{audio_s / 3600 / s:,.1f} h"]
        for name, s in timed(actions, options.repeats).items()
    ]


def main() -> None:
    """Measure, and print."""
    parser = command("reading", __doc__, "--rows 6000 --repeats 5")
    parser.add_argument("--rows", type=int, default=3_000, help="rows of the sink")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="DataLoader workers to try"
    )
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as sink:
        audio_s = fill(sink, options.rows)
        print(f"{options.rows:,} rows, {audio_s / 3600:.1f} h; medians of {options.repeats}")
        header = ("column", "read a row", "tokens_to_arrays", "to_pylist", "ratio")
        print_table(header, [ways(sink, name, options.repeats) for name in COLUMNS])
        print(f"\nepochs, batches of up to {MAX_FRAMES:,} frames")
        lines = epochs(sink, options, audio_s)
        print_table(("", "rows a second", "audio a second"), lines)


if __name__ == "__main__":
    main()
